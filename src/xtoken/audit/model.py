"""What an audit finds: plain dataclasses with one stable JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

REPORT_VERSION = 2

LossChoice = Literal["path_kl", "direct"]
XTokenChoice = Literal["p_kl", "h_kl"]
Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class Tokenizer:
    """One side of the pair.

    `size`: ids (real size); `rows`: rows of the model's output head where known; `padded_rows`:
    rows - size; `distinct_bytes`: different byte strings; `lossy`/`notes`: where its bytes are
    not the text's bytes.
    """

    name: str
    size: int
    rows: int | None
    padded_rows: int | None
    missing_ids: int
    special_tokens: int
    distinct_bytes: int
    fingerprint: str
    lossy: bool
    normalizes: bool
    notes: tuple[str, ...]
    has_chat_template: bool


@dataclass(frozen=True)
class Overlap:
    """Byte strings that both vocabularies have.

    `student_share` = shared / student's distinct byte strings, `teacher_share` likewise,
    `smaller_share` = shared / the smaller vocabulary's (as NeMo-RL's guide counts it).
    """

    shared: int
    student_share: float
    teacher_share: float
    smaller_share: float


@dataclass(frozen=True)
class ClassRow:
    """One token class: ids, ids with an exact partner, and their use on the sample text.

    `*_text_tokens`: tokens of the class in the encoded sample text (None without a text),
    `*_text_exact`: those with an exact partner. `unmatched_examples`: student tokens without one,
    the most used on the text first; `teacher_unmatched_examples` likewise. `effects`: loss -> what
    it does with the class.
    """

    key: str
    title: str
    critical: bool
    student_ids: int
    student_exact: int
    teacher_ids: int
    teacher_exact: int
    student_text_tokens: int | None
    student_text_exact: int | None
    teacher_text_tokens: int | None
    teacher_text_exact: int | None
    unmatched_examples: tuple[str, ...]
    teacher_unmatched_examples: tuple[str, ...]
    effects: dict[str, str]


@dataclass(frozen=True)
class FrequentToken:
    """A student token of the text without an exact partner, and where W sends it."""

    student_id: int
    text: str
    count: int
    share: float
    class_key: str
    kind: str
    pieces: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TextStatistics:
    """The two encodings of the sample text and their alignment.

    `byte_coverage`: share of the text's bytes inside chunks; `chunks`: counts by kind
    (student:teacher); `one_to_one_share`: 1:1 chunks / chunks; `student_tokens_per_byte`: the
    fertility; `reach_share`: share of student tokens that W sends to the teacher at all;
    `exact_share`: share of student tokens with an exact partner; `sampled`: the text was longer
    than the limit and only `bytes` of `total_bytes` were read.
    """

    documents: int
    bytes: int
    total_bytes: int
    sampled: bool
    student_tokens: int
    teacher_tokens: int
    student_tokens_per_byte: float
    teacher_tokens_per_byte: float
    reach_share: float
    exact_share: float
    teacher_exact_share: float
    byte_coverage: float
    chunks: dict[str, int]
    one_to_one_share: float
    student_encodes_exactly: bool
    teacher_encodes_exactly: bool
    frequent_inexact: tuple[FrequentToken, ...]


@dataclass(frozen=True)
class RoleRow:
    """A role on both sides: the tokens that play it, and whether W pairs them."""

    role: str
    student_id: int | None
    student_text: str | None
    teacher_id: int | None
    teacher_text: str | None
    paired: bool


@dataclass(frozen=True)
class MarkRow:
    """A thinking mark (`<think>`, ...): how many tokens each side needs (None: can't write it)."""

    mark: str
    student_tokens: int | None
    teacher_tokens: int | None


@dataclass(frozen=True)
class AuditWarning:
    """Something that the user would regret not having seen."""

    code: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """Which loss to take, and why; the class that makes a strict split unsound, and on which side.

    `x_token`: which of X-Token's two losses the pair asks for: `p_kl` where a strict split into
    common and uncommon tokens is unsound, `h_kl` where it is sound; None for one tokenizer.
    """

    loss: LossChoice
    x_token: XTokenChoice | None
    deciding_class: str | None
    side: Side | None
    reason: str


@dataclass(frozen=True)
class SuppressionRow:
    """Uncommon student tokens of one class (without exact partner) on the text.

    Means over the measured chunk starts: `mass` the probability that the student holds on them,
    `gradient` the sum of p_S[j] * M_C(T), by which a strict partition pushes their logits down.
    `tokens`: ids; `text_tokens`: chunk starts where the text goes on with one of them, and
    `text_probability` the mean probability that the student gives it there (None: nowhere).
    `examples`: the most suppressed tokens.
    """

    key: str
    title: str
    tokens: int
    mass: float
    gradient: float
    text_tokens: int
    text_probability: float | None
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Suppression:
    """What a strict (exact-match) partition would suppress, measured with the student's model.

    Means over `chunks` chunk starts: `mass`, `gradient` as in `SuppressionRow`, over all classes;
    `gradient_norm` the mean L2 norm of the gradient on uncommon logits; `common_mass` the
    teacher's mass on the common tokens, M_C(T): 1, its upper bound, unless `teacher_measured`.
    `bytes` of the text's `total_bytes` were read. `classes`: the largest gradient first.
    """

    chunks: int
    student_tokens: int
    bytes: int
    total_bytes: int
    teacher_measured: bool
    common_mass: float
    mass: float
    gradient: float
    gradient_norm: float
    classes: tuple[SuppressionRow, ...]


@dataclass(frozen=True)
class AuditReport:
    """All that `audit` found; see each part's own documentation.

    `coverage` holds `Projection.stats()`; `other_digits` the single digits of other scripts that
    the student has, each with whether the teacher has it too. `suppression` is there where a
    student model was run (`measure_suppression`).
    """

    student: Tokenizer
    teacher: Tokenizer
    same_tokenizer: bool
    verdict: Verdict
    overlap: Overlap
    coverage: dict[str, Any]
    classes: tuple[ClassRow, ...]
    other_digits: dict[str, bool]
    roles: tuple[RoleRow, ...]
    marks: tuple[MarkRow, ...]
    warnings: tuple[AuditWarning, ...]
    text: TextStatistics | None = None
    suppression: Suppression | None = None
    version: int = field(default=REPORT_VERSION)

    def class_row(self, key: str) -> ClassRow | None:
        """Return the row of one token class, None if neither side has such tokens."""
        return next((row for row in self.classes if row.key == key), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, keys as the fields; tuples become lists."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
