"""Built-in tasks of lm-evaluation-harness on local files, for machines without a network.

A file holds what the task's own data set holds (GSM8K: `question`, `answer`), or one of three plain
forms that public evaluation files come in:

    {"query": ..., "choices": [...], "gold": 0}                       multiple choice
    {"context": ..., "continuation": ...}                             what comes next
    {"context_options": [...], "continuation": ..., "gold": 0}        which beginning fits

The task's prompt ("Question: ... Answer:"), metrics and filters stay; only where rows come from
changes, and for the plain forms how a row is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtoken.errors import EvaluationError, UsageError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
# Names of a task's files in a folder: `piqa.jsonl`, `gsm8k_test.jsonl`, `gsm8k_train.jsonl`.
_TEST = ("", "_test", "_validation", "_val", "_dev")
_QUESTION, _ANSWER = "Question: ", "\nAnswer:"
_FIELDS = ("doc_to_text", "doc_to_target", "doc_to_choice")


@dataclass(frozen=True)
class TaskData:
    """A task's local files: the questions, and where few-shot examples come from (if elsewhere)."""

    test: Path
    train: Path | None = None


@dataclass
class _Given:
    files: dict[str, dict[str, Path]] = field(default_factory=dict)

    def add(self, task: str, split: str, path: Path) -> None:
        self.files.setdefault(task, {})[split] = path


def parse_task_data(items: Sequence[str]) -> dict[str, TaskData]:
    """Read `NAME=FILE` and `NAME:train=FILE` (few-shot examples) into files a task.

    Raises UsageError for another form, a file that isn't there, or examples without questions.
    """
    given = _Given()
    for item in items:
        name, equals, file = item.partition("=")
        task, _, split = name.strip().partition(":")
        if not equals or not task or not file or split not in ("", "train"):
            raise UsageError(
                f"--task-data is {item!r}; expected NAME=FILE, such as piqa=piqa.jsonl, or "
                "NAME:train=FILE for few-shot examples."
            )
        path = Path(file).expanduser()
        if not path.is_file():
            raise UsageError(f"--task-data {item}: there is no file {path}.")
        given.add(task, split or "test", path)
    return _finished(given)


def find_task_data(folder: str | Path, tasks: Iterable[str]) -> dict[str, TaskData]:
    """Find the tasks' files in a folder by name: NAME.jsonl or NAME_test.jsonl, NAME_train.jsonl.

    Tasks without a file are left out. Raises UsageError where the folder isn't there.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--tasks-data is {str(folder)!r}, which is no folder.")
    given = _Given()
    for task in tasks:
        test = _first(folder, [f"{task}{ending}" for ending in _TEST])
        if test is not None:
            given.add(task, "test", test)
            train = _first(folder, [f"{task}_train"])
            if train is not None:
                given.add(task, "train", train)
    return _finished(given)


def _first(folder: Path, stems: Iterable[str]) -> Path | None:
    found = (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def _finished(given: _Given) -> dict[str, TaskData]:
    for task, files in given.files.items():
        if "test" not in files:
            raise UsageError(
                f"--task-data names few-shot examples for {task}, but no questions; add "
                f"--task-data {task}=FILE."
            )
    return {t: TaskData(files["test"], files.get("train")) for t, files in given.files.items()}


def local_config(name: str, config: Mapping[str, Any], data: TaskData) -> dict[str, Any]:
    """Return a built-in task's configuration, reading local files instead of the hub.

    Args:
        name: the task.
        config: its own configuration, as lm-eval loads it.
        data: the files.

    Raises:
        EvaluationError: the task is made by Python code, a file is broken or empty, or its rows
            lack what the task reads.
    """
    if "class" in config or config.get("custom_dataset"):
        raise EvaluationError(
            f"The task {name} reads its data with code of its own; it can't be given a local file. "
            "Write a task file for it and give its folder as --include-path."
        )
    rows = read_rows(data.test)
    changed = dict(config)
    columns = set(rows[0])
    form = _plain_form(config, columns)
    if form is not None and (_reads_by_code(config) or not columns >= _read_columns(config)):
        changed |= form
    elif not columns >= _read_columns(config):
        raise EvaluationError(
            f"The rows of {data.test} have {_listed(columns)}, but the task {name} reads "
            f"{_listed(_read_columns(config))}. Rename the columns, or write a task file and give "
            "its folder as --include-path."
        )
    files = {"test": str(data.test.resolve())}
    if data.train is not None:
        files["train"] = str(data.train.resolve())
        missing = columns - set(read_rows(data.train)[0])
        if missing:
            raise EvaluationError(
                f"{data.train} has no {_listed(missing)}, which {data.test} has; give few-shot "
                "examples of the same form."
            )
    metadata = config.get("metadata")
    return changed | {
        "task": name,
        "dataset_path": "json" if data.test.suffix != ".parquet" else "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": "train" if data.train else None,
        "validation_split": None,
        "test_split": "test",
        # Where there is no file of examples, lm-eval takes them from the other questions.
        "fewshot_split": "train" if data.train else "test",
        "metadata": {**(metadata if isinstance(metadata, dict) else {}), "local_file": files},
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file of rows (JSONL, a JSON array, parquet); broken lines are named in the error."""
    from xtoken.data.files import read_file

    if path.suffix.lower() not in SUFFIXES:
        raise EvaluationError(f"{path} is no file of rows; expected one of {', '.join(SUFFIXES)}.")
    rows: list[dict[str, Any]] = []
    for row, where, _ in read_file(path, "utf-8"):
        if not isinstance(row, dict):
            raise EvaluationError(f"{where}: expected an object, found {type(row).__name__}.")
        rows.append(row)
    if not rows:
        raise EvaluationError(f"{path} is empty; expected a row a question.")
    return rows


def _read_columns(config: Mapping[str, Any]) -> set[str]:
    """Return the columns that the task's templates read; what code reads is not known."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    names: set[str] = set()
    known = config.get("process_docs") is None
    for key in _FIELDS if known else ():
        text = config.get(key)
        if not isinstance(text, str):
            continue
        if re.fullmatch(r"\w+", text):
            names.add(text)
            continue
        try:
            names |= meta.find_undeclared_variables(Environment().parse(text))
        except TemplateSyntaxError:
            continue
    return names


def _reads_by_code(config: Mapping[str, Any]) -> bool:
    return any(callable(config.get(key)) for key in (*_FIELDS, "process_docs"))


def _plain_form(config: Mapping[str, Any], columns: set[str]) -> dict[str, Any] | None:
    """Return how rows of a plain form are read as the task's, None for rows of another form."""
    kind = config.get("output_type")
    own = config.get("doc_to_text")
    template = own if isinstance(own, str) else ""
    form: dict[str, Any] | None = None
    if kind == "multiple_choice" and columns >= {"query", "choices", "gold"}:
        asked = "{{query.strip()}}"
        if template.startswith(_QUESTION):
            asked = "{{'' if query.startswith('Question:') else 'Question: '}}" + asked
        asked += _ANSWER if template.endswith(_ANSWER) else ""
        form = {"doc_to_text": asked, "doc_to_choice": "choices", "doc_to_target": "gold"}
    elif kind == "multiple_choice" and columns >= {"context_options", "continuation", "gold"}:
        form = {
            "doc_to_text": "gold",
            "doc_to_choice": "context_options",
            "doc_to_target": "continuation",
        }
    elif kind == "loglikelihood" and columns >= {"context", "continuation"}:
        form = {"doc_to_text": "{{context}}", "doc_to_target": "{{' ' + continuation.lstrip()}}"}
    if form is None:
        return None
    return {
        **form,
        "process_docs": None,
        "doc_to_decontamination_query": None,
        "should_decontaminate": False,
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no columns"
