"""Evaluation results as tables that are written beside a run and read by the report.

`evaluation.json` of a run folder:

    {"format": "xtoken-evaluation", "version": 1,
     "tables": [
       {"name": "held-out text", "note": "200 documents, 412,003 bytes",
        "columns": ["before", "after", "cross_entropy_only", "teacher"],
        "rows": [
          {"metric": "bits_per_byte", "label": "bits per byte", "better": "lower",
           "unit": "", "values": {"before": 1.912, "after": 1.603, "teacher": 1.31}}]}]}

Columns are what was measured (`before` and `after` training, the same student trained by
cross-entropy alone, the teacher, or any other name); a row is one metric. A value that was not
measured is absent; one that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xtoken.errors import EvaluationError
from xtoken.evaluation.files import write_whole

Better = Literal["lower", "higher", "neither"]

FILE_NAME = "evaluation.json"
FORMAT = "xtoken-evaluation"
VERSION = 1

# metric -> (label, which direction is better, unit). "%" means: a share, shown times 100.
KNOWN_METRICS: dict[str, tuple[str, Better, str]] = {
    "bits_per_byte": ("bits per byte", "lower", ""),
    "agreement": ("agreement with the teacher", "higher", "%"),
    "kl_per_chunk": ("KL from the teacher, nats a chunk", "lower", ""),
    "kept_mass": ("teacher mass that W reaches", "higher", "%"),
    "bytes_aligned": ("bytes aligned", "higher", "%"),
    "chunks": ("chunks compared", "neither", ""),
    "documents": ("documents", "neither", ""),
    "bytes": ("bytes scored", "neither", ""),
    "tokens": ("tokens scored", "neither", ""),
    "loss": ("loss", "lower", ""),
    "exact_match": ("exact match", "higher", "%"),
    "accuracy": ("accuracy", "higher", "%"),
}

COLUMN_LABELS = {
    "before": "before",
    "after": "after",
    "cross_entropy_only": "cross-entropy only",
    "teacher": "teacher",
}


@dataclass(frozen=True)
class EvaluationRow:
    """One metric over the columns of a table; `values` lacks what was not measured."""

    metric: str
    values: Mapping[str, float]
    label: str = ""
    better: Better = "neither"
    unit: str = ""

    @classmethod
    def of(cls, metric: str, values: Mapping[str, float]) -> EvaluationRow:
        """Make a row of a known metric, with its label, direction and unit filled in.

        `name/class` is a known metric on a part of the text, e.g. `bits_per_byte/numeral_3`; the
        audit's classes are called by their titles.
        """
        base, _, part = metric.partition("/")
        if part:
            from xtoken.audit.classes import TITLES, title

            part = title(part) if part in TITLES or part.startswith("letters_") else part
        label, better, unit = KNOWN_METRICS.get(base, (base.replace("_", " "), "neither", ""))
        return cls(metric, dict(values), f"{label}, {part}" if part else label, better, unit)

    def format(self, column: str) -> str:
        """Return the value of a column for a person ("" where nothing was measured)."""
        value = self.values.get(column)
        return "" if value is None else format_value(value, self.unit)


@dataclass(frozen=True)
class EvaluationTable:
    """Metrics (rows) of several models (columns) on one body of text."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[EvaluationRow, ...]
    note: str = ""

    @classmethod
    def from_columns(
        cls, name: str, columns: Mapping[str, Mapping[str, float]], note: str = ""
    ) -> EvaluationTable:
        """Make a table from `{column: {metric: value}}`, metrics in order of appearance."""
        metrics = list(dict.fromkeys(metric for values in columns.values() for metric in values))
        rows = tuple(
            EvaluationRow.of(
                metric,
                {name: values[metric] for name, values in columns.items() if metric in values},
            )
            for metric in metrics
        )
        return cls(name, tuple(columns), rows, note)

    def row(self, metric: str) -> EvaluationRow | None:
        """Return the row of a metric, None when the table lacks it."""
        return next((row for row in self.rows if row.metric == metric), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values for JSON; what is not finite becomes None."""
        return {
            "name": self.name,
            "note": self.note,
            "columns": list(self.columns),
            "rows": [
                {
                    "metric": row.metric,
                    "label": row.label,
                    "better": row.better,
                    "unit": row.unit,
                    "values": {
                        key: value if math.isfinite(value) else None
                        for key, value in row.values.items()
                    },
                }
                for row in self.rows
            ],
        }


@dataclass
class _Reader:
    """Turns parsed JSON into tables and names the place of what is wrong in it."""

    source: str
    path: list[str] = field(default_factory=list)

    def table(self, data: Any, position: int) -> EvaluationTable:
        where = f"table {position}"
        if not isinstance(data, Mapping) or not isinstance(data.get("rows"), list):
            raise self._error(where, "an object with `name` and a list `rows`", data)
        rows = tuple(self._row(row, f"{where}, row {i}") for i, row in enumerate(data["rows"]))
        columns = data.get("columns") or list(dict.fromkeys(c for row in rows for c in row.values))
        return EvaluationTable(
            str(data.get("name", "evaluation")),
            tuple(str(column) for column in columns),
            rows,
            str(data.get("note") or ""),
        )

    def _row(self, data: Any, where: str) -> EvaluationRow:
        if (
            not isinstance(data, Mapping)
            or "metric" not in data
            or not isinstance(data.get("values"), Mapping)
        ):
            raise self._error(where, "an object with `metric` and `values`", data)
        values = {}
        for column, value in data["values"].items():
            if value is None:
                value = math.nan
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self._error(f"{where}, {column}", "a number or null", value)
            values[str(column)] = float(value)
        known = EvaluationRow.of(str(data["metric"]), values)
        better = data.get("better", known.better)
        return EvaluationRow(
            known.metric,
            values,
            str(data.get("label") or known.label),
            better if better in ("lower", "higher") else "neither",
            str(data.get("unit", known.unit) or ""),
        )

    def _error(self, where: str, expected: str, given: Any) -> EvaluationError:
        return EvaluationError(
            f"{self.source}, {where}: expected {expected}, found {str(given)[:60]!r}. "
            f"See xtoken.evaluation.tables for the format."
        )


def save_evaluation(folder: str | Path, tables: Sequence[EvaluationTable]) -> Path:
    """Write the tables to `evaluation.json` in a run folder (whole or not at all)."""
    data = {"format": FORMAT, "version": VERSION, "tables": [t.to_dict() for t in tables]}
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_whole(Path(folder) / FILE_NAME, text)


def load_evaluation(path: str | Path) -> list[EvaluationTable]:
    """Read `evaluation.json` (a file, or the run folder that holds it).

    Raises EvaluationError where the file is not JSON or not of the documented form.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(
            f"{path} does not exist; expected a file of evaluation tables."
        ) from None
    except ValueError as error:
        raise EvaluationError(
            f"{path} is not JSON ({error}); evaluate again to rewrite it."
        ) from None
    tables = data.get("tables") if isinstance(data, Mapping) else data
    if not isinstance(tables, list):
        raise EvaluationError(
            f"{path} holds {type(data).__name__} without a list `tables`; expected the format of "
            f"xtoken.evaluation.tables."
        )
    if isinstance(data, Mapping) and data.get("version", VERSION) > VERSION:
        raise EvaluationError(
            f"{path} has version {data['version']}; this xtoken reads up to {VERSION}. Upgrade it."
        )
    reader = _Reader(str(path))
    return [reader.table(table, position) for position, table in enumerate(tables)]


def load_lm_eval(path: str | Path) -> dict[str, float]:
    """Read lm-evaluation-harness's results JSON: `{"task metric": value}`, no standard errors.

    A value that is missing or not finite is NaN. Raises EvaluationError for another file.
    """
    return lm_eval_values(_read_lm_eval(path))


def lm_eval_values(results: Mapping[str, Any]) -> dict[str, float]:
    """Return `{"task metric": value}` of results as lm-eval returns or writes them."""
    return {key: value for key, (value, *_) in _lm_eval_values(results).items()}


def lm_eval_table(columns: Mapping[str, str | Path]) -> EvaluationTable:
    """Put results files of lm-evaluation-harness side by side: `{column: file}` as one table."""
    return results_table({column: _read_lm_eval(path) for column, path in columns.items()})


def results_table(columns: Mapping[str, Mapping[str, Any]]) -> EvaluationTable:
    """Put results of lm-evaluation-harness side by side: `{column: results}` as one table.

    Directions are lm-eval's own, shares are shown as per cent, and the note says the largest
    standard error and how many examples each task was run on.
    """
    values: dict[str, dict[str, float]] = {}
    rows: dict[str, tuple[Better, str]] = {}
    errors: dict[str, float] = {}
    counts: dict[str, str] = {}
    for column, results in columns.items():
        for key, (value, error, better, unit) in _lm_eval_values(results).items():
            values.setdefault(key, {})[column] = value
            rows.setdefault(key, (better, unit))
            if math.isfinite(error):
                errors[key] = max(error, errors.get(key, 0.0))
        counts |= _lm_eval_counts(results)
    notes = [f"{task}: {count}." for task, count in counts.items()]
    if errors:
        listed = ", ".join(f"{key} {format_value(e, rows[key][1])}" for key, e in errors.items())
        notes.append(f"Standard errors: {listed}.")
    made = tuple(
        EvaluationRow(key, found, key, rows[key][0], rows[key][1]) for key, found in values.items()
    )
    return EvaluationTable("tasks (lm-eval)", tuple(columns), made, " ".join(notes))


# Metrics of lm-eval that are shares of the examples.
_SHARES = ("acc", "acc_norm", "acc_bytes", "acc_all", "exact_match", "pass@1", "em")


def _read_lm_eval(path: str | Path) -> Mapping[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if all(isinstance(metrics, dict) for metrics in data["results"].values()):
            return data
        reason = "its tasks hold no metrics"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    raise EvaluationError(
        f"{path} is not a results file of lm-eval ({reason}); expected an object `results`."
    )


def _lm_eval_values(data: Mapping[str, Any]) -> dict[str, tuple[float, float, Better, str]]:
    """Return value, standard error, direction and unit of each metric."""
    directions = data.get("higher_is_better")
    found: dict[str, tuple[float, float, Better, str]] = {}
    for task, metrics in data["results"].items():
        higher = directions.get(task) if isinstance(directions, dict) else None
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if "stderr" in metric or isinstance(value, bool | str | list | dict):
                continue
            if not comma and metric in ("alias", "name", "sample_len"):
                continue
            suffix = f" ({filter_name})" if filter_name not in ("", "none") else ""
            error = metrics.get(f"{metric}_stderr,{filter_name}")
            wanted = higher.get(metric) if isinstance(higher, dict) else None
            better: Better = "neither" if wanted is None else "higher" if wanted else "lower"
            found[f"{task} {metric}{suffix}"] = (
                math.nan if value is None else float(value),
                float(error) if isinstance(error, int | float) else math.nan,
                better,
                "%" if metric in _SHARES else "",
            )
    return found


def _lm_eval_counts(data: Mapping[str, Any]) -> dict[str, str]:
    counts: dict[str, str] = {}
    found = data.get("n-samples")
    for task, numbers in found.items() if isinstance(found, dict) else ():
        if isinstance(numbers, dict) and isinstance(numbers.get("effective"), int):
            done, whole = numbers["effective"], numbers.get("original")
            of = f" of {whole:,}" if isinstance(whole, int) and whole > done else ""
            counts[task] = f"{done:,}{of} examples"
    return counts


def format_value(value: float, unit: str = "") -> str:
    """Write a metric for a person: shares as per cent, counts with separators, four digits else."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if value == int(value) and abs(value) >= 100:
        return f"{int(value):,}"
    if abs(value) >= 10_000:
        return f"{value:,.0f} {unit}".strip()
    text = f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2e}"
    return f"{text} {unit}".strip()
