"""Bits per byte, agreement with a teacher, and the tables that hold them.

The tables need neither torch nor a model at import; what measures models is loaded when asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xtoken.evaluation.tables import (
    EvaluationRow,
    EvaluationTable,
    lm_eval_table,
    load_evaluation,
    load_lm_eval,
    save_evaluation,
)

if TYPE_CHECKING:
    from xtoken.evaluation.agreement import Comparison, compare
    from xtoken.evaluation.bpb import BitsPerByte, bits_per_byte

__all__ = [
    "BitsPerByte",
    "Comparison",
    "EvaluationRow",
    "EvaluationTable",
    "bits_per_byte",
    "compare",
    "lm_eval_table",
    "load_evaluation",
    "load_lm_eval",
    "save_evaluation",
]

_LATER = {
    "BitsPerByte": "bpb",
    "bits_per_byte": "bpb",
    "Comparison": "agreement",
    "compare": "agreement",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
