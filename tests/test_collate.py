"""Batches: padding, rows, labels, and chunks that no way of batching changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import TINY_TEXT, train_tokenizer
from xtoken.align import ChunkKind
from xtoken.data import (
    PairCollator,
    PairedDataset,
    Record,
    Row,
    TeacherRow,
    build_dataset,
    chunks_from_batch,
)
from xtoken.data.collate import IGNORED
from xtoken.errors import DataError
from xtoken.vocab import Vocabulary


@pytest.fixture(scope="module")
def vocabularies() -> tuple[Vocabulary, list[Vocabulary]]:
    student = train_tokenizer(vocab_size=400, split_digits=False)
    teacher = train_tokenizer(vocab_size=340, split_digits=True)
    vocabularies = [
        Vocabulary.from_tokenizer(tokenizer, name=name)
        for tokenizer, name in ((student, "student"), (teacher, "teacher"), (student, "twin"))
    ]
    return vocabularies[0], vocabularies[1:]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "packed"])
def dataset(request, vocabularies) -> PairedDataset:
    student, teachers = vocabularies
    records = [Record("text", "", text=text) for text in [*TINY_TEXT, "a river", "2", "42"]]
    records.append(Record("prompt_completion", "", prompt="47 + 471 =", completion=" 518"))
    return build_dataset(records, student, teachers, max_length=40, packing=request.param)


def relative(batch, teacher: int) -> list[tuple]:
    """Each chunk as (sequence, ids on both sides, positions after the padding, kind)."""
    part = batch["teachers"][teacher]
    found = []
    for row, count, other, other_count, kind in part["chunks"].tolist():
        sides = []
        for side, start, size in ((batch, row, count), (part, other, other_count)):
            length = side["input_ids"].shape[1]
            sequence, position = (start + 1) // length, (start + 1) % length
            mask = side["attention_mask"][sequence]
            padding = int(mask.argmax())
            assert mask[position : position + size].all()
            ids = side["input_ids"][sequence, position : position + size].tolist()
            sides.append((sequence, position - padding, tuple(ids)))
        assert sides[0][0] == sides[1][0]
        found.append((*sides, kind))
    return found


def sequences(batch) -> list[tuple]:
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True)
    return [(ids[mask].tolist(), labels[mask].tolist()) for ids, mask, labels in rows]


def without_sequence(chunks: list[tuple], first: int = 0) -> list[tuple]:
    return [((s[0] + first, *s[1:]), (t[0] + first, *t[1:]), kind) for s, t, kind in chunks]


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_and_labels(dataset, vocabularies, side) -> None:
    rows = list(dataset)
    collator = PairCollator.of(vocabularies[0], vocabularies[1], padding_side=side)
    batch = collator(rows)
    length = max(len(row.ids) for row in rows)
    for name in ("input_ids", "attention_mask", "labels"):
        assert batch[name].shape == (len(rows), length)
        assert batch[name].dtype == torch.int64
    for index, row in enumerate(rows):
        size = len(row.ids)
        own = slice(0, size) if side == "right" else slice(length - size, length)
        assert batch["attention_mask"][index].sum() == size
        assert batch["attention_mask"][index, own].all()
        assert batch["input_ids"][index, own].tolist() == row.ids.tolist()
        labels = batch["labels"][index]
        assert (labels != IGNORED).sum() == row.supervised.sum()
        np.testing.assert_array_equal(labels[own].numpy() != IGNORED, row.supervised)
        chosen = labels != IGNORED
        assert torch.equal(labels[chosen], batch["input_ids"][index][chosen])
        assert labels[own][0] == IGNORED
    for teacher, part in enumerate(batch["teachers"]):
        chunks = part["chunks"]
        assert chunks.dtype == torch.int64
        assert chunks.shape == (sum(len(row.teachers[teacher].chunks) for row in rows), 5)
        expected = [
            (index, chunk)
            for index, row in enumerate(rows)
            for chunk in row.teachers[teacher].chunks.tolist()
        ]
        for (index, (start, count, other, other_count)), line in zip(
            expected, chunks.tolist(), strict=True
        ):
            shift = 0 if side == "right" else length - len(rows[index].ids)
            other_length = part["input_ids"].shape[1]
            other_shift = (
                0 if side == "right" else other_length - len(rows[index].teachers[teacher].ids)
            )
            # row = b * S + position - 1
            assert line[:4] == [
                index * length + shift + start - 1,
                count,
                index * other_length + other_shift + other - 1,
                other_count,
            ]
            assert line[4] == (other_count > 1) + 2 * (count > 1)


def test_padding_sides_give_the_same_chunks(dataset, vocabularies) -> None:
    rows = list(dataset)
    batches = [
        PairCollator.of(*vocabularies, padding_side=side, multiple_of=multiple)(rows)
        for side, multiple in (("right", 1), ("left", 1), ("left", 16), ("right", 7))
    ]
    for batch in batches[1:]:
        assert sequences(batch) == sequences(batches[0])
        for teacher in range(2):
            assert relative(batch, teacher) == relative(batches[0], teacher)
    assert batches[2]["input_ids"].shape[1] % 16 == 0
    assert batches[3]["teachers"][0]["input_ids"].shape[1] % 7 == 0


@settings(max_examples=30, deadline=None)
@given(data=st.data(), side=st.sampled_from(["right", "left"]))
def test_splitting_a_batch_changes_no_chunk(dataset, vocabularies, data, side) -> None:
    rows = list(dataset)
    cuts = data.draw(st.lists(st.integers(1, len(rows) - 1), unique=True).map(sorted))
    collator = PairCollator.of(*vocabularies, padding_side=side)
    whole = collator(rows)
    edges = [0, *cuts, len(rows)]
    parts = [(a, collator(rows[a:b])) for a, b in itertools.pairwise(edges)]
    assert [line for _, part in parts for line in sequences(part)] == sequences(whole)
    for teacher in range(2):
        found = [line for a, part in parts for line in without_sequence(relative(part, teacher), a)]
        assert found == relative(whole, teacher)
    for name in ("student_bytes", "student_tokens"):
        assert sum(part["stats"][name] for _, part in parts) == whole["stats"][name]
    for teacher in range(2):
        for name, value in whole["stats"]["teachers"][teacher].items():
            assert sum(part["stats"]["teachers"][teacher][name] for _, part in parts) == value


@pytest.mark.parametrize("side", ["right", "left"])
def test_chunks_name_the_realised_tokens(dataset, vocabularies, side) -> None:
    student, teachers = vocabularies
    batch = PairCollator.of(student, teachers, padding_side=side)(list(dataset))
    for teacher, vocab in enumerate(teachers):
        chunks = chunks_from_batch(batch, teacher)
        assert len(chunks) > 10
        assert chunks.student_target_N.shape == (batch["input_ids"].numel(),)
        assert chunks.teacher_target_M.shape == (batch["teachers"][teacher]["input_ids"].numel(),)
        for index in range(len(chunks)):
            spelt = []
            for own, target, start, count in (
                (student, chunks.student_target_N, chunks.student_start_C, chunks.student_count_C),
                (vocab, chunks.teacher_target_M, chunks.teacher_start_C, chunks.teacher_count_C),
            ):
                ids = target[start[index] : start[index] + count[index]].tolist()
                assert min(ids) >= 0
                assert len(ids) == count[index] >= 1
                spelt.append(b"".join(own.token_bytes(token) for token in ids))
            assert spelt[0] == spelt[1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_targets_are_the_next_real_tokens(vocabularies, dataset, side) -> None:
    batch = PairCollator.of(*vocabularies, padding_side=side)(list(dataset))
    targets_BS = chunks_from_batch(batch, 0).student_target_N.reshape(batch["input_ids"].shape)
    for ids, mask, targets in zip(
        batch["input_ids"].tolist(),
        batch["attention_mask"].tolist(),
        targets_BS.tolist(),
        strict=True,
    ):
        for place, target in enumerate(targets):
            real = place + 1 < len(ids) and mask[place] and mask[place + 1]
            assert target == (ids[place + 1] if real else -1)


def test_statistics(dataset, vocabularies) -> None:
    rows = list(dataset)
    stats = PairCollator.of(*vocabularies)(rows)["stats"]
    assert stats["student_bytes"].dtype == torch.float64
    assert stats["student_bytes"] == dataset.statistics().text_bytes
    assert stats["student_tokens"] == dataset.statistics().tokens
    for teacher, totals in enumerate(dataset.statistics().teachers):
        found = stats["teachers"][teacher]
        for kind in ChunkKind:
            assert found[kind.name.lower()] == getattr(totals, kind.name.lower())
        assert found["aligned_bytes"] == totals.aligned_bytes
        assert found["text_bytes"] == totals.text_bytes


def row(ids: list[int], chunks: list[list[int]], teacher_ids: list[int]) -> Row:
    supervised = np.arange(len(ids)) > 0
    table = np.array(chunks, np.int32).reshape(-1, 4)
    side = TeacherRow(np.array(teacher_ids, np.int32), table, len(teacher_ids), 0)
    return Row(np.array(ids, np.int32), supervised, len(ids), (side,))


def test_a_batch_by_hand() -> None:
    rows = [row([5, 6, 7], [[1, 2, 1, 1]], [8, 9]), row([4], [], [3])]
    batch = PairCollator(0, [1])(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
    (part,) = batch["teachers"]
    assert part["input_ids"].tolist() == [[8, 9], [3, 1]]
    assert part["chunks"].tolist() == [[0, 2, 0, 1, ChunkKind.MANY_TO_ONE]]
    batch = PairCollator(0, [1], padding_side="left")([*reversed(rows)])
    assert batch["input_ids"].tolist() == [[0, 0, 4], [5, 6, 7]]
    assert batch["labels"].tolist() == [[-100, -100, -100], [-100, 6, 7]]
    assert batch["teachers"][0]["chunks"].tolist() == [[3, 2, 2, 1, ChunkKind.MANY_TO_ONE]]


def test_batches_without_chunks_or_rows() -> None:
    batch = PairCollator()([row([4], [], [3])])
    assert batch["teachers"][0]["chunks"].shape == (0, 5)
    assert len(chunks_from_batch(batch, 0)) == 0
    with pytest.raises(DataError, match="no rows"):
        PairCollator()([])


def test_pad_ids_come_from_the_vocabularies(vocabularies) -> None:
    student, teachers = vocabularies
    collator = PairCollator.of(student, teachers)
    assert collator.student_pad_id == student.role_id("pad")
    assert collator.teacher_pad_ids == tuple(vocab.role_id("pad") for vocab in teachers)
