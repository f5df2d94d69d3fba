"""Distil one language model into another, whatever their tokenizers.

    from xtoken import Projection, Vocabulary, align

    student = Vocabulary.from_pretrained("path/to/student")
    teacher = Vocabulary.from_pretrained("path/to/teacher")
    alignment = align(student, teacher, student_ids, teacher_ids)
    projection = Projection.build(student, teacher)

Importing `xtoken` needs neither torch nor transformers; losses, training and evaluation live in
`xtoken.losses`, `xtoken.training` and `xtoken.evaluation`.
"""

from xtoken._version import __version__
from xtoken.align import Alignment, ChunkKind, align, align_batch
from xtoken.encode import (
    Encoding,
    encode_chat,
    encode_prompt_completion,
    encode_text,
    encode_texts,
)
from xtoken.errors import XTokenError
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary

__all__ = [
    "Alignment",
    "ChunkKind",
    "Encoding",
    "Projection",
    "Vocabulary",
    "XTokenError",
    "__version__",
    "align",
    "align_batch",
    "encode_chat",
    "encode_prompt_completion",
    "encode_text",
    "encode_texts",
]
