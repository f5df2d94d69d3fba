"""The projection W between two vocabularies: built from bytes, saved, explained, imported."""

from xtoken.projection.changes import Changes, RowChange, compare
from xtoken.projection.explain import Explanation, Piece, TeacherExplanation
from xtoken.projection.matrix import Projection
from xtoken.projection.pt_import import import_pt

__all__ = [
    "Changes",
    "Explanation",
    "Piece",
    "Projection",
    "RowChange",
    "TeacherExplanation",
    "compare",
    "import_pt",
]
