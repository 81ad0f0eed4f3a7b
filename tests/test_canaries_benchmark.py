"""The benchmark of canaries: what their fates choose from Recant's ladder beside what an oracle would."""

from __future__ import annotations

from typing import Any

import canaries


def row(setting: str, canary: float, hidden: float, perplexity: float) -> dict[str, Any]:
    fate = {"canary": "word", "n": 24, "asr": canary, "asr_interval": None, "asr_keyword": 0.0,
            "asr_keyword_interval": None, "recovery": 0.5, "clean_asr": 0.0}  # fmt: skip
    share = 0.0 if setting == canaries.CARRIER else 1.0
    return {"model": "m", "seed": 0, "setting": setting, "share": share, "canaries": [fate], "seconds": 1.0,
            "hidden": {"asr": hidden, "asr_keyword": 0.0}, "perplexity": perplexity}  # fmt: skip


BEFORE = row("before", 1.0, 1.0, 2.0)


def test_canaries_and_an_oracle_take_the_weakest_that_removes_and_keeps_utility() -> None:
    ladder = [
        row("Recant light", 0.0, 0.5, 2.0),
        row("Recant", 0.0, 0.05, 2.08),  # GONE is reached, not passed
        row("Recant strong", 0.0, 0.0, 2.2),
    ]
    assert canaries.against_oracle([BEFORE, *ladder])[-1] == "| m | Recant light: 50 | Recant: 5 |"
    # What lies above both says nothing more; a rung that is missing below would.
    assert canaries.against_oracle([BEFORE, *ladder[:2]])[-1] == "| m | Recant light: 50 | Recant: 5 |"
    assert (
        canaries.against_oracle([BEFORE, ladder[0]]) == canaries.against_oracle([BEFORE, *ladder[1:]]) == []
    )
    told = canaries.told([BEFORE, *ladder])
    assert [canaries.falsely_assured(r) for r in told] == [True, False, False]


def test_what_costs_too_much_is_not_chosen() -> None:
    dear = [row(name, 0.0, 0.0, 2.2) for name in canaries.LADDER]
    assert canaries.against_oracle([BEFORE, *dear])[-1] == "| m | none | none |"
    assert canaries.against_oracle([BEFORE, *dear[:2]]) == []  # not the whole ladder
