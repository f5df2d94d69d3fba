"""A report as plain values, for `xtoken report --json`.

    {"runs": [{"name", "folder", "student", "teachers", "loss", "steps",
               "metrics": {"ce": {"count", "first", "last", "lowest", "highest"}, ...},
               "seconds_a_step": {"teacher": 0.35, ...},
               "verdicts": [{"loss", "reason", ...}, ...],
               "evaluation": [tables as in evaluation.json],
               "summary": {...}, "resumed_at": [...], "notes": [...]}],
     "differences": {"loss.kind": ["p_kl", "gold"], ...}}

`loss` is null for a run without distillation; figures are of the recorded finite values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xtoken.report.charts import time_split
from xtoken.report.run_data import RunData, Series, differences


def report_data(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return what a report says as plain values for JSON.

    Keys: `runs`, for each its `name`, `metrics` (first, last, lowest and highest of each),
    `evaluation` and more, as the module's head has them; and `differences`, the settings in which
    the runs differ with one value a run.
    """
    return {"runs": [_run(run) for run in runs], "differences": differences(runs)}


def _run(run: RunData) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "student": run.student,
        "teachers": run.teachers,
        "loss": run.loss_kind if run.distils else None,
        "steps": run.steps,
        "metrics": {key: _figures(series) for key, series in run.metrics.items()},
        "seconds_a_step": time_split(run),
        "verdicts": [audit["verdict"] for audit in run.audits],
        "evaluation": [table.to_dict() for table in run.evaluation],
        "summary": run.summary,
        "resumed_at": run.resumed_at,
        "notes": run.notes,
    }


def _figures(series: Series) -> dict[str, Any]:
    values = series.finite().values
    if not values:
        return {"count": 0, "first": None, "last": None, "lowest": None, "highest": None}
    return {
        "count": len(values),
        "first": values[0],
        "last": values[-1],
        "lowest": min(values),
        "highest": max(values),
    }
