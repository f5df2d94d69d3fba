"""A run folder read for a report: whatever is there, with notes on what is missing or damaged.

    run.yaml          the resolved run file
    metrics.jsonl     one object a line, with `step` and numbers (may end in a half-written line)
    audit.json        `AuditReport.to_dict()`, or a list of them (several teachers)
    alignment.json    statistics of the aligned data (see `ALIGNMENT_KEYS`), or a list of them
    _excerpts.json    [{"examples": [{"blocks": [...]}]}], one for each of these
    evaluation.json   tables of before and after (`xtoken.evaluation.tables`)
    lm_eval/*.json    lm-evaluation-harness's results; a file's name is its column
    samples.json      [{"prompt": "...", "outputs": {"before": "...", "after": "..."}}]
    environment.json  {"python": "3.11", "torch": "2.13", "device": "...", ...}
    summary.json      how the run ended: {"seconds": ..., "steps": ..., "status": "..."}

Every file is optional, but a folder with none of them is no run folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtoken.errors import UsageError, XTokenError
from xtoken.evaluation.tables import COLUMN_LABELS, EvaluationTable, lm_eval_table, load_evaluation

RUN_FILES = ("run.yaml", "metrics.jsonl", "audit.json", "alignment.json", "evaluation.json")

# Keys of alignment.json that the report shows; all optional.
ALIGNMENT_KEYS = {
    "documents": "documents",
    "student_tokens": "student tokens",
    "teacher_tokens": "teacher tokens",
    "student_tokens_per_byte": "student tokens a byte",
    "teacher_tokens_per_byte": "teacher tokens a byte",
    "byte_coverage": "share of bytes aligned",
    "one_to_one_share": "share of 1:1 chunks",
    "supervised_chunks": "supervised chunks",
}


@dataclass(frozen=True)
class Series:
    """One key of metrics.jsonl: steps ascending; a value may be NaN or infinite."""

    steps: tuple[float, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> Series:
        """Return the series without values that are not finite."""
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return Series(tuple(s for s, _ in kept), tuple(v for _, v in kept))

    def broken_steps(self) -> list[float]:
        """Return the steps whose values are not finite."""
        return [s for s, v in zip(self.steps, self.values, strict=True) if not math.isfinite(v)]


@dataclass(frozen=True)
class Sample:
    """One prompt and what each model wrote after it (`before`, `after`, `teacher`, ...)."""

    prompt: str
    outputs: Mapping[str, str]


@dataclass
class RunData:
    """All that a report shows of one run; `notes` are sentences about what could not be read."""

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    metrics: dict[str, Series] = field(default_factory=dict)
    audits: list[dict[str, Any]] = field(default_factory=list)
    alignments: list[dict[str, Any]] = field(default_factory=list)
    evaluation: list[EvaluationTable] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    resumed_at: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The last step that metrics.jsonl tells of (0 without any)."""
        return int(max((series.steps[-1] for series in self.metrics.values()), default=0))

    @property
    def student(self) -> str:
        """The student's name from the run file, or from the audit."""
        given = _at(self.config, "student", "model")
        if given is None and self.audits:
            given = _at(self.audits[0], "student", "name")
        return short_name(given) if given else "student"

    @property
    def teachers(self) -> list[str]:
        """The teachers' names."""
        listed = self.config.get("teachers")
        names = [_at(teacher, "model") for teacher in listed] if isinstance(listed, list) else []
        if not any(names):
            names = [_at(audit, "teacher", "name") for audit in self.audits]
        return [short_name(name) for name in names if name]

    @property
    def loss_kind(self) -> str | None:
        """`loss.kind` of the run file."""
        kind = _at(self.config, "loss", "kind")
        return None if kind is None else str(kind)

    @property
    def distils(self) -> bool:
        """False for a run whose distillation term has weight 0 (a baseline)."""
        return _at(self.config, "combine", "kd") != 0

    def last(self, key: str) -> float | None:
        """Return the last finite value of a metric."""
        series = self.metrics.get(key)
        values = series.finite().values if series else ()
        return values[-1] if values else None


def load_run(folder: str | Path) -> RunData:
    """Read a run folder for a report.

    Damaged files become notes, not failures: a report on a half-written run shows what is there.
    Raises UsageError where the folder does not exist or holds no file of a run.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UsageError(f"{folder} does not exist; expected a run folder (a run's output_dir).")
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; expected a run folder (a run's output_dir).")
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if not present:
        raise UsageError(
            f"{folder} is not a run folder: it holds none of {', '.join(RUN_FILES)}. "
            f"Give the output_dir of a run file, after `xtoken train`."
        )
    run = RunData(folder, folder.resolve().name)
    _read_config(run)
    _read_metrics(run)
    run.audits = [item for item in _objects(run, "audit.json") if "verdict" in item]
    run.alignments = _alignments(_objects(run, "alignment.json"))
    for item, excerpts in zip(run.alignments, _objects(run, "_excerpts.json"), strict=False):
        if isinstance(excerpts.get("examples"), list):
            item["examples"] = excerpts["examples"]
    _read_evaluation(run)
    _read_samples(run)
    for name in ("environment", "summary"):
        found = _objects(run, f"{name}.json")
        if found:
            setattr(run, name, found[0])
    return run


def short_name(name: object) -> str:
    """Shorten a path or hub name (`owner/name`) to its last part."""
    text = str(name).rstrip("/")
    return Path(text).name or text


def differences(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """Return the settings in which runs differ: dotted key -> each run's value ("" = not set)."""
    flat = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = {key: [plain(settings.get(key)) for settings in flat] for key in keys}
    ignored = ("output_dir", "training.output_dir", "training.run_name", "training.logging_dir")
    return {k: v for k, v in rows.items() if len(set(v)) > 1 and k not in ignored}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one mapping with dotted keys."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value} if prefix else {}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat


def plain(value: Any) -> str:
    """Write a setting as a run file would."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _read_config(run: RunData) -> None:
    path = run.folder / "run.yaml"
    if not path.exists():
        run.notes.append("run.yaml is missing: the settings are not known.")
        return
    import yaml

    run.config_text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(run.config_text)
    except yaml.YAMLError as error:
        run.notes.append(f"run.yaml is not YAML: {' '.join(str(error).split())[:160]}")
        return
    if isinstance(config, dict):
        run.config = config
    else:
        run.notes.append("run.yaml holds no settings.")


def _read_metrics(run: RunData) -> None:
    path = run.folder / "metrics.jsonl"
    if not path.exists():
        run.notes.append("metrics.jsonl is missing: no curves.")
        return
    rows: list[dict[str, float]] = []
    broken: list[int] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _metrics_row(line)
        if row is None:
            # The line that a running (or killed) process was writing is no damage.
            if number < len(lines):
                broken.append(number)
            continue
        if rows and row["step"] < rows[-1]["step"]:
            # Resumed from a checkpoint: what came after it was done again.
            run.resumed_at.append(row["step"])
            rows = [old for old in rows if old["step"] < row["step"]]
        rows.append(row)
    if broken:
        shown = ", ".join(str(number) for number in broken[:5])
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        run.notes.append(f"metrics.jsonl: line {shown}{more} is not readable and was left out.")
    if not rows:
        run.notes.append("metrics.jsonl is empty: no curves.")
    run.metrics = _columns(rows)
    run.notes += _not_finite(run.metrics)


def _not_finite(metrics: Mapping[str, Series]) -> list[str]:
    """Say which metrics are not finite: keys that fail alike share a sentence.

    A diverged run has NaN in every figure from one step on; a line a figure would bury the rest.
    """
    alike: dict[tuple[float, int], list[str]] = {}
    for key, series in metrics.items():
        bad = series.broken_steps()
        if bad:
            alike.setdefault((bad[0], len(bad)), []).append(key)
    notes = []
    for (step, count), keys in sorted(alike.items()):
        values = "value is" if count == 1 else "values are"
        each = " each" if len(keys) > 1 else ""
        named = ", ".join(keys)
        notes.append(f"{named}: {count} {values} not finite{each}, first at step {step:g}.")
    return notes


def _metrics_row(line: str) -> dict[str, float] | None:
    try:
        data = json.loads(line)
        row = {"step": float(data["step"])}
    except (ValueError, KeyError, TypeError):
        return None
    if not math.isfinite(row["step"]):
        return None
    for key, value in data.items():
        if key == "step" or isinstance(value, bool | list | dict):
            continue
        if value is None:
            row[key] = math.nan
            continue
        try:
            row[key] = float(value)
        except ValueError:
            continue
    return row


def _columns(rows: list[dict[str, float]]) -> dict[str, Series]:
    columns: dict[str, dict[float, float]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step":
                columns.setdefault(key, {})[row["step"]] = value
    return {key: Series(tuple(points), tuple(points.values())) for key, points in columns.items()}


def _objects(run: RunData, name: str) -> list[dict[str, Any]]:
    """Read a JSON file as a list of objects; one object counts as a list of one."""
    path = run.folder / name
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        run.notes.append(f"{name} is not JSON and was left out: {error}")
        return []
    listed = data if isinstance(data, list) else [data]
    return [item for item in listed if isinstance(item, dict)]


_KIND_NAMES = {"one_to_one": "1:1", "one_to_many": "1:N", "many_to_one": "N:1"}
_KIND_NAMES["many_to_many"] = "M:N"


def _alignments(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accept a list of statistics, one object, or `{"teachers": [...]}`."""
    flat: list[dict[str, Any]] = []
    for item in found:
        inner = item.get("teachers")
        flat += [x for x in inner if isinstance(x, dict)] if isinstance(inner, list) else [item]
    for item in flat:
        if isinstance(item.get("chunks"), dict):
            item["chunks"] = {_KIND_NAMES.get(k, k): n for k, n in item["chunks"].items()}
    return flat


def _read_evaluation(run: RunData) -> None:
    if (run.folder / "evaluation.json").exists():
        try:
            run.evaluation = load_evaluation(run.folder)
        except XTokenError as error:
            run.notes.append(str(error))
    columns: dict[str, Path] = {}
    for path in sorted((run.folder / "lm_eval").glob("*.json")):
        try:
            lm_eval_table({path.stem: path})
        except XTokenError as error:
            run.notes.append(str(error))
        else:
            columns[path.stem] = path
    if columns:
        order = sorted(columns, key=lambda c: (_column_place(c), c))
        run.evaluation.append(lm_eval_table({c: columns[c] for c in order}))


def _column_place(column: str) -> int:
    known = list(COLUMN_LABELS)
    return known.index(column) if column in known else len(known)


def _read_samples(run: RunData) -> None:
    for item in _objects(run, "samples.json"):
        outputs = item.get("outputs")
        if isinstance(outputs, dict) and "prompt" in item:
            run.samples.append(
                Sample(str(item["prompt"]), {str(k): str(v) for k, v in outputs.items()})
            )
