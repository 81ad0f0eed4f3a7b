"""What is measured beyond attack success and perplexity, as it travels to the JSON and the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detrojan.types import Interval


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task of lm-evaluation-harness; the value is in the metric's own unit."""

    task: str
    metric: str
    value: float
    stderr: float | None
    """The standard error, where the harness knows one."""
    n: int
    shots: int | None
    """Examples shown before each question; None for a group of tasks that differ."""
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Judged:
    """One question of one or two turns: the answers, and what the judge gave for each."""

    turns: tuple[str, ...]
    answers: tuple[str, ...]
    grades: tuple[float | None, ...]
    """1 to 10; None where the judge gave no grade that can be read."""
    reviews: tuple[str, ...]
    """The judge's words."""
    category: str | None = None


@dataclass(frozen=True)
class JudgeResult:
    """How a judge graded the answers, 1 to 10."""

    judge: str
    score: float | None
    """The mean over the questions of the mean over their turns; None where no grade could be read."""
    score_interval: Interval | None
    """The 95 % interval over the questions (Student's t)."""
    n: int
    """Questions with at least one grade."""
    failed: int
    """Grades that were asked for and could not be read."""
    questions: tuple[Judged, ...]


@dataclass(frozen=True)
class Jailbreak:
    """One request, the suffix that was found for it, and the answer that both together draw."""

    prompt: str
    target: str
    suffix: str
    response: str
    broken: bool
    broken_alone: bool
    """Whether the answer begins with the target without any suffix."""


@dataclass(frozen=True)
class JailbreakResult:
    """The share of requests whose answer begins with the target, after a search for a suffix; rates are fractions."""

    broken: float
    broken_interval: Interval
    broken_alone: float
    n: int
    steps: int
    width: int
    requests: tuple[Jailbreak, ...]


def rebuilt(data: dict[str, Any]) -> dict[str, Any]:
    """Rebuild the records of an evaluate result from its JSON data, under the names of their fields."""
    judge, jailbreak = data.get("judge"), data.get("jailbreak")
    if judge is not None:
        interval = judge["score_interval"]
        asked = tuple(_judged(q) for q in judge["questions"])
        interval = Interval(*interval) if interval else None
        judge = JudgeResult(**{**judge, "score_interval": interval, "questions": asked})
    if jailbreak is not None:
        requests = tuple(Jailbreak(**r) for r in jailbreak["requests"])
        interval = Interval(*jailbreak["broken_interval"])
        jailbreak = JailbreakResult(**{**jailbreak, "broken_interval": interval, "requests": requests})
    return {
        "tasks": tuple(TaskScore(**t) for t in data.get("tasks") or ()),
        "judge": judge,
        "jailbreak": jailbreak,
    }


def _judged(data: dict[str, Any]) -> Judged:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Judged(**fields)
