"""The projection W between two vocabularies: built from bytes, saved, explained, imported."""

from xtoken.projection.explain import Explanation, Piece, TeacherExplanation
from xtoken.projection.matrix import Projection
from xtoken.projection.pt_import import import_pt

__all__ = ["Explanation", "Piece", "Projection", "TeacherExplanation", "import_pt"]
