"""What training did to a projection: a learned W beside the one it began from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xtoken.errors import ProjectionError
from xtoken.projection.explain import Explanation, explain_row

if TYPE_CHECKING:
    from xtoken.projection.matrix import Projection

THRESHOLD = 0.01
EXAMPLES = 20


@dataclass(frozen=True)
class RowChange:
    """One row that moved: as it is now, each piece's weight before, and how much weight moved."""

    row: Explanation
    before: tuple[float, ...]
    moved: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.row.to_dict(), "before": list(self.before), "moved": self.moved}


@dataclass(frozen=True)
class Changes:
    """Two projections of one shape, compared over the rows that have several pieces.

    The weight that a row moved is half the L1 distance between the two rows (0 to 1);
    `changed` counts rows that moved more than `threshold`.
    """

    rows: int
    changed: int
    threshold: float
    mean_moved: float
    most_moved: float
    examples: tuple[RowChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rows": self.rows,
            "changed": self.changed,
            "threshold": self.threshold,
            "mean_moved": self.mean_moved,
            "most_moved": self.most_moved,
            "examples": [example.to_dict() for example in self.examples],
        }


def compare(
    earlier: Projection,
    later: Projection,
    *,
    threshold: float = THRESHOLD,
    examples: int = EXAMPLES,
) -> Changes:
    """Compare two projections whose rows point at the same teacher tokens.

    Args:
        earlier, later: for the same tokenizers, with the same entries.
        threshold: weight that a row must move to be counted as changed.
        examples: how many of the rows that moved most are explained.

    Raises:
        ProjectionError: projections for other tokenizers, or with other entries.
    """
    for side in ("student", "teacher"):
        if getattr(earlier, f"{side}_fingerprint") != getattr(later, f"{side}_fingerprint"):
            tables = [getattr(p, f"{side}_tokens") for p in (earlier, later)]
            names = " and ".join("no tokens" if table is None else table.name for table in tables)
            raise ProjectionError(
                f"The two projections are for different {side}s ({names}); only a W and one "
                "learned from it can be compared."
            )
    same = earlier.indices.shape == later.indices.shape
    held = (later.weights > 0) | (earlier.weights > 0) if same else None
    if held is None or not np.array_equal(earlier.indices[held], later.indices[held]):
        raise ProjectionError(
            "The two projections have different entries, so one wasn't learned from the other; "
            "build both by the same rules."
        )
    several_X = np.flatnonzero(held.sum(1) > 1)
    difference = np.abs(later.weights[several_X] - earlier.weights[several_X])
    moved_X = difference.sum(1, dtype=np.float64) / 2.0
    found = []
    for position in np.argsort(-moved_X, kind="stable")[:examples]:
        if moved_X[position] <= threshold:
            break
        row = int(several_X[position])
        used = later.weights[row] > 0
        before = tuple(float(w) for w in earlier.weights[row][used])
        found.append(RowChange(explain_row(later, row), before, float(moved_X[position])))
    return Changes(
        rows=len(several_X),
        changed=int((moved_X > threshold).sum()),
        threshold=threshold,
        mean_moved=float(moved_X.mean()) if len(moved_X) else 0.0,
        most_moved=float(moved_X.max()) if len(moved_X) else 0.0,
        examples=tuple(found),
    )
