"""Tasks of lm-evaluation-harness (GSM8K, PIQA, ...) on a model that is already loaded."""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtoken.errors import EvaluationError, UsageError, XTokenError
from xtoken.evaluation.files import write_whole
from xtoken.evaluation.task_data import TaskData, local_config

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

INSTALL = 'pip install "xtoken[lm-eval]"'
# Resamplings for standard errors that have no formula.
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Tasks:
    """Tasks that exist and can be run: `specs` as lm-eval's manager loads them."""

    manager: Any
    specs: list[str | dict[str, Any]]


def require_lm_eval() -> None:
    """Raise UsageError with the command to run where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(f"--tasks needs lm-evaluation-harness; install it with `{INSTALL}`.")


def find_tasks(
    names: Sequence[str],
    data: Mapping[str, TaskData] | None = None,
    include_path: Sequence[str | Path] = (),
) -> Tasks:
    """Find tasks by name (a task, group, tag or pattern such as `mmlu_*`) and read their data.

    Args:
        names: the tasks.
        data: local files for built-in tasks; other tasks read what their task file names.
        include_path: folders of the user's own task files (YAML).

    Raises:
        UsageError: an unknown name (near ones are suggested), no such folder, no lm-eval.
        EvaluationError: a task's data can't be read.
    """
    require_lm_eval()
    for folder in include_path:
        if not Path(folder).is_dir():
            raise UsageError(f"--include-path is {str(folder)!r}, which is no folder.")
    quiet()
    data = data or {}
    manager = _manager(tuple(str(Path(folder).resolve()) for folder in include_path), tuple(names))
    found = list(dict.fromkeys(match for name in names for match in _matches(manager, name)))
    unused = [task for task in data if task not in found]
    if unused:
        raise UsageError(f"There is data for {', '.join(unused)}, which --tasks doesn't name.")
    specs = [_with_data(manager, name, data[name]) if name in data else name for name in found]
    for spec in specs:
        _load(manager, spec)
    return Tasks(manager, specs)


def run_tasks(
    model: Any,
    vocab: Vocabulary,
    tasks: Tasks,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 1,
    seed: int = 1234,
) -> dict[str, Any]:
    """Run tasks on a causal language model; returns lm-eval's results as it would write them.

    Args:
        model: a transformers model, on the device it is to run on.
        vocab: its vocabulary (with its tokenizer).
        tasks: see `find_tasks`.
        limit: examples a task at most.
        num_fewshot: examples before each question (None: what the task says).
        batch_size: requests at a time.
        seed: of the few-shot examples' choice, the same for every model.

    Raises:
        EvaluationError: lm-eval could not run a task on its data.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from xtoken.evaluation.harness import tidy_output
    from xtoken.evaluation.scoring import evaluating

    quiet()
    try:
        with evaluating(model), tidy_output():
            results = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=vocab.tokenizer, batch_size=batch_size),
                tasks=list(tasks.specs),
                task_manager=tasks.manager,
                limit=limit,
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
                fewshot_random_seed=seed,
            )
    except (XTokenError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        raise EvaluationError(
            f"lm-eval could not run {', '.join(_names(tasks.specs))}: {_said(error)}. Either "
            "the rows don't fit the task or the model doesn't (too short a context); "
            "XTOKEN_DEBUG=1 shows where it happened."
        ) from error
    assert results is not None
    return dict(results)


def save_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Write results as lm-eval does (JSON), whole or not at all."""
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return write_whole(Path(path), text + "\n")


def quiet() -> None:
    """Keep lm-eval's log to errors unless XTOKEN_DEBUG is set."""
    if os.environ.get("XTOKEN_DEBUG", "0") in ("", "0"):
        logging.getLogger("lm_eval").setLevel(logging.ERROR)


@cache
def _built_in() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _manager(folders: tuple[str, ...], names: Sequence[str]) -> Any:
    from lm_eval.tasks import TaskManager

    if not folders:
        return _built_in()
    # Reading the index of the built-in tasks takes seconds, so only where one is asked for.
    own = TaskManager(include_path=list(folders), include_defaults=False)
    if all(own.match_tasks([name]) for name in names):
        return own
    return TaskManager(include_path=list(folders))


def _matches(manager: Any, name: str) -> list[str]:
    found: list[str] = manager.match_tasks([name])
    if found:
        return found
    near = difflib.get_close_matches(name, manager.all_tasks, n=4, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "See `lm-eval ls tasks` for all names."
    raise UsageError(f"--tasks names {name!r}, which lm-eval doesn't have. {hint}")


def _with_data(manager: Any, name: str, data: TaskData) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[name]
    if entry.yaml_path is None or entry.kind.name not in ("TASK", "PY_TASK"):
        raise UsageError(
            f"{name} is a group of tasks; a local file stands for one task. Name its tasks one by "
            "one, each with its file."
        )
    return local_config(name, load_yaml(entry.yaml_path, resolve_func=True), data)


def _load(manager: Any, spec: str | dict[str, Any]) -> None:
    name = _names([spec])[0]
    try:
        manager.load([spec])
    except (XTokenError, MemoryError):
        raise
    except Exception as error:
        if isinstance(spec, dict):
            hint = "Its rows may not fit the task."
        else:
            hint = (
                "Tasks get their data from the hub; without a network, give a local file: "
                f"--task-data {name}=FILE."
            )
        raise EvaluationError(f"The task {name} can't be loaded: {_said(error)}. {hint}") from error


def _names(specs: Sequence[str | dict[str, Any]]) -> list[str]:
    return [spec if isinstance(spec, str) else str(spec["task"]) for spec in specs]


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
