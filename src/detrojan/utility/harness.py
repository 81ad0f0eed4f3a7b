"""Benchmarks of lm-evaluation-harness, run on the model that is already loaded.

Some tasks (HumanEval, MBPP) run the code that the model writes, and fetch the code that runs it from the hub: they are
refused unless that is allowed. Without that leave nothing of the harness may fetch code either.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrojan.errors import InputError, first_line
from detrojan.models.generate import own_generation_config, stop_tokens
from detrojan.options import suggest
from detrojan.scores import TaskScore
from detrojan.types import Loaded, Progress, Template, silent
from detrojan.utility.code import code_runs, parts, running_code
from detrojan.utility.hushed import hushed
from detrojan.utility.seeded import seeded

RESAMPLES = 1000
"""Bootstrap samples of a standard error that no formula gives."""


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data, ready to be asked."""

    names: tuple[str, ...]
    loaded: Mapping[str, Any]
    """What lm-evaluation-harness makes of them."""
    runs_code: bool


def find_tasks(names: Sequence[str], run_generated_code: bool = False) -> Tasks:
    """Load tasks with their data: those of the harness by name, and all that stand in a folder of YAML files.

    What has a slash in it or begins with a dot is a folder; the Python functions that its files name are run. Raises
    InputError when a name is unknown, the data cannot be had, or a task runs generated code and that is not allowed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError("--tasks needs lm-eval (pip install 'detrojan[eval]')") from None
    folders = {n: Path(n).expanduser().resolve() for n in names if "/" in n or n.startswith((".", "~"))}
    missing = next((n for n, folder in folders.items() if not folder.is_dir()), None)
    if missing is not None:
        raise InputError(f"--tasks {missing}: no such folder")
    with hushed("lm_eval"), seeded(0), code_runs(run_generated_code):
        manager = TaskManager(include_path=list(folders.values()), include_defaults=len(folders) < len(names))
        index = manager.task_index
        wanted = [t for n in names for t in (_inside(index, folders[n]) if n in folders else [n])]
        for name in wanted:
            if name not in index:
                raise InputError(f"--tasks: {suggest(name, index, 'task')}")
            unsafe = next(running_code(index, name), None)
            if unsafe and not run_generated_code:
                raise InputError(
                    f"--tasks: {unsafe} runs the code that the model writes, on this machine and without a sandbox; "
                    "allow it with --run-generated-code, or leave the task out"
                )
        try:
            return Tasks(tuple(wanted), manager.load(wanted), run_generated_code)
        except Exception as error:
            raise InputError(f"--tasks {','.join(wanted)}: cannot be loaded ({first_line(error)})") from error


def scores(
    loaded: Loaded,
    template: Template,
    tasks: Tasks,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[TaskScore, ...]:
    """Ask the model the questions of the tasks, at most `limit` of each.

    They are asked in the tokenizer's own chat template where the model is measured in it, else as bare texts. What a
    task leaves open is decoded greedily: the checkpoint's sampling settings are ignored.
    """
    from lm_eval.evaluator import evaluate
    from transformers import GenerationConfig

    for task in tasks.loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    chat = template.name == "chat"
    greedy = GenerationConfig(do_sample=False, eos_token_id=stop_tokens(loaded) or None)
    with (
        hushed("lm_eval"),
        code_runs(tasks.runs_code),
        seeded(seed),
        own_generation_config(loaded.model, greedy),
    ):
        try:
            found: dict[str, Any] = evaluate(
                lm=_wrapped(loaded, template, batch_size, progress),
                task_dict=tasks.loaded,
                limit=limit,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                confirm_run_unsafe_code=tasks.runs_code,
            )
        except Exception as error:
            raise InputError(f"--tasks {','.join(tasks.names)}: failed ({first_line(error)})") from error
    return tuple(_scores(found))


def _inside(index: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what the files of a folder define: groups, and tasks that stand in none of them."""
    found = {n: e for n, e in index.items() if e.yaml_path and folder in Path(e.yaml_path).resolve().parents}
    grouped = [part for e in found.values() for part in parts(e.cfg)]
    inner = {p.get("task") if isinstance(p, dict) else p for p in grouped}
    names = [n for n in found if n not in inner]
    if not names:
        raise InputError(
            f"--tasks {folder}: no task of lm-evaluation-harness (a .yaml file with `task:`) in it"
        )
    return names


def _scores(found: Mapping[str, Any]) -> Iterator[TaskScore]:
    rows = {**found["results"], **(found.get("groups") or {})}
    for task, row in rows.items():
        better = found["higher_is_better"].get(task) or {}
        for key, value in row.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr"):
                continue
            error = row.get(f"{metric}_stderr,{chosen}")
            yield TaskScore(
                task,
                metric if chosen == "none" else key,
                float(value),
                float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None,
                int(row.get("sample_len") or 0),
                found["n-shot"].get(task),
                better.get(metric),
            )


def _wrapped(loaded: Loaded, template: Template, batch_size: int, progress: Progress) -> Any:
    """Return the model as the harness takes it, with a tokenizer of its own and our progress for its bars."""
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        def _asking(self, requests: Iterable[Any], call: Any) -> Any:
            self.label, self.done, self.total = "answering tasks", 0, len(list(requests))
            answers = call(requests, disable_tqdm=True)
            progress(self.label, self.total, self.total)
            return answers

        def _passed(self, rows: int) -> None:
            self.done = min(
                self.done + rows, self.total - 1
            )  # requests may share a pass, and passes may be warm-up
            progress(self.label, self.done, self.total)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._asking(requests, super().loglikelihood)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._asking(requests, super().loglikelihood_rolling)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._asking(requests, super().generate_until)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            out = super()._model_call(inps, *args, **kwargs)
            self._passed(len(inps))
            return out

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            out = super()._model_generate(context, *args, **kwargs)
            self._passed(len(context))
            return out

    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = template.source
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens((stop_tokens(loaded) or [0])[0])
    return Model(pretrained=loaded.model, tokenizer=tokenizer, batch_size=batch_size)
