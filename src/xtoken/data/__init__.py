"""Data for distillation: read, encode for every model, align, pack, collate.

    records = read_records("train.jsonl")
    dataset = build_dataset(records, student_vocab, [teacher_vocab], max_length=1024)
    collator = PairCollator.of(student_vocab, [teacher_vocab])
    batch = collator([dataset[0], dataset[1]])
    chunks = chunks_from_batch(batch, 0)

Needs torch only for collating.
"""

from typing import TYPE_CHECKING, Any

from xtoken.data.build import build_dataset
from xtoken.data.dataset import PairedDataset
from xtoken.data.pairing import PairedExample, Pairing, PairingSettings, TeacherSide
from xtoken.data.records import Columns, Record
from xtoken.data.rows import Row, TeacherRow
from xtoken.data.sources import Records, SourceSpec, read_records

if TYPE_CHECKING:
    from xtoken.data.collate import PairCollator, chunks_from_batch

__all__ = [
    "Columns",
    "PairCollator",
    "PairedDataset",
    "PairedExample",
    "Pairing",
    "PairingSettings",
    "Record",
    "Records",
    "Row",
    "SourceSpec",
    "TeacherRow",
    "TeacherSide",
    "build_dataset",
    "chunks_from_batch",
    "read_records",
]


def __getattr__(name: str) -> Any:
    if name in ("PairCollator", "chunks_from_batch"):
        from xtoken.data import collate

        return getattr(collate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
