"""The figures in README and docs come from the committed results files."""

from __future__ import annotations

from pathlib import Path

import publish
import text_attacks

ROOT = Path(__file__).parents[1]


def test_demo_figures_stand_in_readme_and_docs() -> None:
    runs = publish.read()
    assert publish.table(runs) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert publish.table(runs) in (ROOT / "docs/results/README.md").read_text(encoding="utf-8")
    assert (ROOT / "docs/results/demo.md").read_text(encoding="utf-8") == publish.page(runs)


def test_attack_figures_stand_in_docs() -> None:
    rows = text_attacks.read_rows(ROOT / "docs/results/text_attacks.jsonl")
    assert text_attacks.markdown(rows).strip() in (ROOT / "docs/results/README.md").read_text(
        encoding="utf-8"
    )


def test_ladder_is_chosen_on_clean_data_alone() -> None:
    """The step of lowest consistency whose perplexity is within 10 %, whatever its attack success."""
    attacked = {"choosing_perplexity": 2.0, "choosing_consistency": 0.3, "asr": 1.0}
    cell = {
        "attacked": attacked,
        "finetune 1e-3": {"choosing_perplexity": 2.0, "choosing_consistency": 0.0, "asr": 0.0},
        "crow paper": {"choosing_perplexity": 2.1, "choosing_consistency": 0.2, "asr": 0.0},
        "crow ladder 1": {"choosing_perplexity": 2.2, "choosing_consistency": 0.1, "asr": 0.9},
        "crow ladder 2": {"choosing_perplexity": 2.3, "choosing_consistency": 0.0, "asr": 0.0},
    }
    assert text_attacks.best_of_ladder(cell) is cell["crow ladder 1"]
