"""The ladder of the text benchmark."""

from __future__ import annotations

import text_attacks


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
