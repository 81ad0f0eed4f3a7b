"""What the benchmark says Recant leaves and costs, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import removal


def row(
    column: str, perplexity: float, left: float = 0.0, words: float = 0.0, **others: Any
) -> dict[str, Any]:
    where = {"cell": "badnets/refusal/strong", "seed": 0, "column": column}
    asked = {"n_triggered": 50, "asr": left, "worst_asr": left, "asr_keyword": words, "recovery": 0.5}
    known = {
        "asr_interval": [0.0, 0.1],
        "clean_asr": 0.0,
        "choosing_perplexity": 2.0,
        "likeness": 0.4,
        "seconds": 7.0,
    }
    found = {"fixed answers": [{"certainty": 0.99}], "options": {"suspicious": 0.97}}
    return {**where, **asked, **known, **found, "perplexity": perplexity, **others}


ROWS = [row("base", 2.0, recovery=0.45), row("attacked", 2.5, 1.0, 1.0), row("recant", 2.1, 0.02, 0.06)]


def test_what_is_left_and_what_it_costs() -> None:
    [(name, seed, cell)] = removal.cells(ROWS)
    assert (name, seed) == ("badnets/refusal/strong", 0) and "crow" not in cell
    assert removal.left([cell], "recant") == (1, 3, 50)
    assert removal.rises([cell], "recant") == [pytest.approx(0.05)]  # above the model before the attack
    cheap = {**cell, "attacked": {**cell["attacked"], "perplexity": 1.75}}
    assert removal.rises([cheap], "recant") == [
        pytest.approx(0.2)
    ]  # above the attacked model, which is lower


def test_a_backdoor_that_fine_tuning_was_not_run_on_has_a_line() -> None:
    line = removal.markdown(ROWS).splitlines()[-1]
    assert "| yes (0.990) | 100, 2 [0, 10] | 100, 6 | 2 | 45, 50, 50 | 40, -, 40 | 0, 0 |" in line


def test_versions_stand_in_a_line_each() -> None:
    earlier = [row(column, 2.2) for column in removal.VERSIONS if column != "recant"]
    *_, fourth, now = removal.versions([*ROWS, *earlier]).splitlines()
    assert fourth.endswith("| 1 | 0, 0 of 50 | 10 [10, 10] | 40 | 5 |")
    assert now.endswith("| 1 | 1, 3 of 50 | 5 [5, 5] | 40 | 5 |")
