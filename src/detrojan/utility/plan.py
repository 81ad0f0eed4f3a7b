"""What `evaluate` is to measure beyond attack success: checked before any work, done after all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrojan.errors import InputError
from detrojan.metrics.asr import Settings
from detrojan.types import Loaded, Progress, Template
from detrojan.utility.harness import Tasks, find_tasks, scores
from detrojan.utility.jailbreak import Request, jailbreaks, read_requests
from detrojan.utility.judge import Judge, connect, judged
from detrojan.utility.questions import Question, read_questions


@dataclass(frozen=True)
class Plan:
    """The tasks, questions and requests to put to a model; what was not asked for is empty."""

    tasks: Tasks | None
    limit: int | None
    questions: list[Question]
    judge: Judge | None
    judge_tokens: int
    requests: list[Request]
    gcg_steps: int
    gcg_width: int

    def measure(
        self, loaded: Loaded, template: Template, settings: Settings, progress: Progress
    ) -> dict[str, Any]:
        """Return what was asked for, under the names of the fields of `EvalResult`."""
        found: dict[str, Any] = {}
        size, seed = settings.batch_size, settings.seed
        if self.tasks is not None:
            found["tasks"] = scores(
                loaded, template, self.tasks, limit=self.limit, batch_size=size, seed=seed, progress=progress
            )
        if self.judge is not None:
            long = Settings(self.judge_tokens, size, seed)
            found["judge"] = judged(
                loaded, template, self.questions, self.judge, settings=long, progress=progress
            )
        if self.requests:
            found["jailbreak"] = jailbreaks(
                loaded,
                template,
                self.requests,
                steps=self.gcg_steps,
                width=self.gcg_width,
                batch_size=size,
                seed=seed,
                progress=progress,
            )
        return found


def plan(
    *,
    tasks: Sequence[str],
    limit: int | None,
    run_generated_code: bool,
    questions: str | Path | None,
    judge: str | None,
    judge_model: str | None,
    judge_tokens: int,
    gcg: str | Path | None,
    gcg_steps: int,
    gcg_width: int,
) -> Plan:
    """Read and check everything that was asked for; raises InputError before any model is loaded."""
    if not tasks and (limit is not None or run_generated_code):
        raise InputError("--limit and --run-generated-code belong to --tasks")
    if len({bool(questions), bool(judge), bool(judge_model)}) > 1:
        raise InputError("--questions, --judge and --judge-model belong together; give all or none")
    if min(judge_tokens, gcg_steps, gcg_width, 1 if limit is None else limit) < 1:
        raise InputError("--limit, --judge-tokens, --gcg-steps and --gcg-width must be at least 1")
    asked = read_questions(questions) if questions else []
    requests = read_requests(gcg) if gcg else []
    found = find_tasks(tasks, run_generated_code) if tasks else None
    client = connect(judge, judge_model) if judge and judge_model else None
    return Plan(found, limit, asked, client, judge_tokens, requests, gcg_steps, gcg_width)
