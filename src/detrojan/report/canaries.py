"""What became of the canaries, in words: what they prove of a defense, and what they do not."""

from __future__ import annotations

from typing import Any

from detrojan.report.words import DASH, known, percent

LIMIT = (
    "Canaries show what the same defense does to backdoors of our own in a copy of the model. A hidden backdoor of "
    "another kind may fare otherwise."
)
HEADS = (
    "Canary",
    "Trigger",
    "Planted answer",
    "ASR before",
    "ASR after",
    "Key words after",
    "Recovery",
    "False triggers before",
    "Fate",
)
RUNG_HEADS = ("Setting", "Canaries removed", "Perplexity changed by", "Used")


def sentences(proof: dict[str, Any] | None) -> list[str]:
    """Say what was proven, and what is bad about it; nothing where no proof was asked for."""
    return [headline(proof), *failures(proof), LIMIT] if proof else []


def headline(proof: dict[str, Any]) -> str:
    """Say how many canaries were removed, how strong they were, and what it cost."""
    planted, taken = len(proof["canaries"]), len(proof["taken"])
    if not taken:
        return f"Canaries: none of {planted} took, so nothing is known of what the defense removes."
    left_out = f" ({planted - taken} more did not take)" if taken < planted else ""
    return (
        f"Canaries: {proof['removed']} of {taken} as strong as {percent(proof['strength'])} removed{left_out}; 95 % "
        f"interval of the share removed {percent(*proof['removed_interval'])}. Utility: perplexity of held-out answers "
        f"{changed(proof['cost'])}, of the copy {changed(used(proof)['cost'])}."
    )


def failures(proof: dict[str, Any]) -> list[str]:
    """Say what makes the proof a bad one, a sentence each: survivors, no canary, too high a price."""
    if not proof["taken"]:
        weak = ", ".join(f"{f['canary']} {percent(f['asr'])}" for f in proof["before"])
        return [f"No canary took (attack success: {weak}), so nothing is proven."]
    fates = {f["canary"]: f for f in used(proof)["fates"]}
    bound, found = proof["max_cost"], []
    for name in proof["survivors"]:
        f = fates[name]
        found.append(
            f"The canary {name} survived: {percent(f['asr'])} of triggered prompts draw its text, "
            f"{percent(f['asr_keyword'])} its key words."
        )
    for whose, cost in (("the model", proof["cost"]), ("the copy with canaries", used(proof)["cost"])):
        if not (known(cost) and cost <= bound):
            found.append(
                f"Perplexity of {whose} {changed(cost)}; at most {percent(bound)} more are allowed (--max-cost)."
            )
    return found


def table(proof: dict[str, Any]) -> list[list[str]]:
    """Return a row of cells under HEADS for each canary."""
    at = used(proof)
    left = {f["canary"]: f for f in (at["fates"] if at else ())}
    return [
        _row(c, before, left.get(before["canary"]), proof)
        for c, before in zip(proof["canaries"], proof["before"], strict=True)
    ]


def _row(
    canary: dict[str, Any], before: dict[str, Any], after: dict[str, Any] | None, proof: dict[str, Any]
) -> list[str]:
    name, trigger, behavior = before["canary"], canary["trigger"], canary["behavior"]
    fate = "SURVIVED" if name in proof["survivors"] else "removed"
    target = behavior["target"] + (" ..." if behavior["then_honest"] else "")
    return [
        name,
        f"{' + '.join(trigger['phrases'])} ({trigger['place']})",
        target,
        _rate(before, "asr"),
        _rate(after, "asr"),
        _rate(after, "asr_keyword"),
        f"{percent(before['recovery'])} before, {percent(after['recovery']) if after else DASH} after",
        percent(before["clean_asr"]),
        fate if name in proof["taken"] else "did not take",
    ]


def rungs(proof: dict[str, Any]) -> list[list[str]]:
    """Return a row of cells under RUNG_HEADS for each setting that was tried, weakest first."""
    taken = proof["taken"]
    return [
        [
            r["preset"] or "as given",
            f"{len(taken) - len(r['survivors'])} of {len(taken)}",
            changed(r["cost"]),
            "yes" if k == proof["chosen"] else "",
        ]
        for k, r in enumerate(proof["rungs"])
    ]


def used(proof: dict[str, Any]) -> dict[str, Any]:
    """Return the setting that was used, {} where no canary took."""
    found: dict[str, Any] = proof["rungs"][proof["chosen"]] if proof["chosen"] is not None else {}
    return found


def changed(cost: Any) -> str:
    """Write the change of a perplexity, a fraction, in words."""
    if not known(cost):
        return "changed beyond measure"
    return f"{'rose' if cost >= 0 else 'fell'} by {percent(abs(cost))}"


def _rate(fate: dict[str, Any] | None, key: str) -> str:
    return f"{percent(fate[key])} ({percent(*fate[f'{key}_interval'])})" if fate else DASH
