"""Short excerpts of the training text with both tokenisations, for a run's report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from xtoken.align import align_batch
from xtoken.aligned_blocks import Block, blocks
from xtoken.encode import encode_texts

if TYPE_CHECKING:
    from xtoken.vocab import Vocabulary

# Text that excerpts are looked for in.
SEARCHED_CHARACTERS = 1 << 15
EXCERPTS = 3
# Chunks of an excerpt: it ends before a word from the first number on, anywhere at the second.
FEWEST_CHUNKS, MOST_CHUNKS = 20, 32
# Of both sides; chunks of very many tokens show nothing.
MOST_TOKENS = 160


def alignment_excerpts(
    student: Vocabulary, teacher: Vocabulary, texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a few excerpts that show every kind of chunk which the texts' beginning has.

    Each is {"blocks": [...]}, with blocks as `Block.to_dict` writes them;
    none, if the texts are empty. The first one shows the most kinds, the next those that are
    missing yet; excerpts of 1:1 chunks alone are left out where there are others.
    """
    windows = [
        (window, {block.kind for block in window})
        for text in _searched(texts)
        for window in _windows(_blocks(student, teacher, text))
    ]
    shown: set[int] = set()
    chosen: list[list[Block]] = []
    while windows and len(chosen) < EXCERPTS:
        # The earliest of those that are as good.
        best = max(windows, key=lambda item: (len(item[1] - shown), len(item[1])))
        if chosen and len(best[1]) == 1 and best[1] <= shown:
            break
        windows.remove(best)
        chosen.append(best[0])
        shown |= best[1]
    return [{"blocks": [block.to_dict() for block in window]} for window in chosen]


def _searched(texts: Sequence[str]) -> Iterator[str]:
    left = SEARCHED_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def _blocks(student: Vocabulary, teacher: Vocabulary, text: str) -> list[Block]:
    (ours,), (theirs,) = (encode_texts(vocab, [text], eos=False) for vocab in (student, teacher))
    (alignment,) = align_batch(
        student,
        teacher,
        [ours.ids],
        [theirs.ids],
        student_spans=[ours.spans],
        teacher_spans=[theirs.spans],
    )
    return blocks(student, teacher, ours.ids, theirs.ids, alignment)


def _windows(items: Sequence[Block]) -> Iterator[list[Block]]:
    """Cut blocks into windows that begin with a word, where they can; too large ones are left."""
    window: list[Block] = []
    for block in items:
        begins = block.student[:1] and block.student[0].startswith(("·", "⏎"))
        if len(window) >= (FEWEST_CHUNKS if begins else MOST_CHUNKS):
            yield from _bounded(window)
            window = []
        window.append(block)
    yield from _bounded(window)


def _bounded(window: list[Block]) -> Iterator[list[Block]]:
    tokens = sum(len(block.student) + len(block.teacher) for block in window)
    if window and tokens <= MOST_TOKENS:
        yield window
