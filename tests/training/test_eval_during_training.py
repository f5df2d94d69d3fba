"""Evaluation during training: global sums, no example counted twice, the formula of the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_toys import (
    STUDENT_SIZE,
    TEACHER_SIZE,
    Collator,
    chunks_of,
    make_examples,
    make_objective,
    make_trainer,
)

from xtoken.training.batches import RankBatches, repeated_positions
from xtoken.training.combine import Combine
from xtoken.training.metrics import Clock, Sums
from xtoken.training.objective import realised_nats


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    results = []
    for size in (1, 3, 7):
        trainer = make_trainer(
            tmp_path,
            examples=make_examples(4, teachers=2),
            objective=make_objective(2, (0.8, 0.2)),
            eval_dataset=make_examples(7, seed=4, teachers=2),
            per_device_eval_batch_size=size,
        )
        results.append(trainer.evaluate())
    names = ("loss", "ce", "kd", "kd/t0", "kd/t1", "bpb", "teacher_bpb", "kept_mass")
    for other in results[1:]:
        for name in names:
            assert other[f"eval_{name}"] == pytest.approx(results[0][f"eval_{name}"], rel=1e-5)
    first = results[0]
    assert first["eval_kd"] == pytest.approx(0.8 * first["eval_kd/t0"] + 0.2 * first["eval_kd/t1"])


@pytest.mark.parametrize("scaling", ["fixed", "dynamic"])
def test_the_evaluation_loss_follows_the_training_loss(tmp_path: Path, scaling: str) -> None:
    trainer = make_trainer(
        tmp_path,
        examples=make_examples(4),
        eval_dataset=make_examples(7, seed=4),
        combine=Combine(kd=0.5, ce=2.0, scaling=scaling),
    )
    figures = trainer.evaluate()
    scale = 1.0 if scaling == "fixed" else figures["eval_ce"] / figures["eval_kd"]
    expected = 2.0 * figures["eval_ce"] + 0.5 * scale * figures["eval_kd"]
    assert figures["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_several_evaluation_sets_keep_their_names(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        examples=make_examples(4),
        eval_dataset={"a": make_examples(3, seed=4), "b": make_examples(3, seed=5)},
    )
    figures = trainer.evaluate()
    assert figures["eval_a_ce"] != figures["eval_b_ce"]


@pytest.mark.parametrize("length", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_data_without_repeats(length: int, ranks: int) -> None:
    shares = [RankBatches(length, 2, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    real = [index for share in shares for batch in share.batches[: share.real] for index in batch]
    assert sorted(real) == list(range(length))


@pytest.mark.parametrize(("length", "size", "ranks"), [(13, 2, 2), (9, 2, 3), (3, 4, 2), (8, 2, 2)])
def test_repeats_are_where_accelerate_puts_them(length: int, size: int, ranks: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    real = []
    for rank in range(ranks):
        batches = BatchSampler(SequentialSampler(range(length)), size, drop_last=False)
        for number, batch in enumerate(BatchSamplerShard(batches, ranks, rank)):
            repeated = repeated_positions(
                number, len(batch), batch_size=size, rank=rank, ranks=ranks, length=length
            )
            real += [i for i, again in zip(batch, repeated.tolist(), strict=True) if not again]
    assert sorted(real) == list(range(length))


def test_teacher_nats_are_those_of_the_rows_in_chunks() -> None:
    batch = Collator("left")(make_examples(4))
    chunks = chunks_of(batch, 0)
    rows = batch["teachers"][0]["input_ids"].numel()
    # Padded columns beyond the vocabulary must not take mass.
    logits = torch.randn(rows, TEACHER_SIZE + 3, generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(TEACHER_SIZE)
    nats, size = realised_nats(logits, chunks, lengths)
    expected, expected_size = 0.0, 0
    log_probs = logits[:, :TEACHER_SIZE].double().log_softmax(-1)
    for start, count in zip(chunks.teacher_start_C, chunks.teacher_count_C, strict=True):
        for row in range(int(start), int(start + count)):
            target = int(chunks.teacher_target_M[row])
            expected -= float(log_probs[row, target])
            expected_size += int(lengths[target])
    assert float(nats) == pytest.approx(expected, rel=1e-6)
    assert int(size) == expected_size


def test_figures_are_sums_divided_once() -> None:
    one, other = Sums(), Sums()
    one.add("ce", torch.tensor(6.0), 2)
    one.add("never", 0.0, 0.0)
    other.add("ce", 1.0, torch.tensor(5))
    assert Sums.means([one.pairs(), other.pairs()]) == {"ce": 1.0}
    one.merge(other)
    assert Sums.means([one.pairs()]) == {"ce": 1.0}


def test_the_clock_adds_up_phases() -> None:
    clock = Clock()
    for phase in ("data", "loss", "data", None):
        clock.enter(phase)
    clock.enter("lost")
    seconds = clock.seconds()
    assert set(seconds) == {"data", "loss"}
    assert all(value >= 0 for value in seconds.values())
    assert clock.seconds() == {}


def test_logged_figures(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, examples=make_examples(8), max_steps=4, logging_steps=2)

    def agreement(student: Tensor, teacher: Tensor, chunks: object) -> tuple[Tensor, Tensor]:
        assert student.shape[1] == STUDENT_SIZE
        return torch.tensor(1.0), torch.tensor(4.0)

    trainer.objective.teachers[0].agreement = agreement
    trainer.train()
    lines = trainer.state.log_history[:-1]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["kd"] == line["kd/t0"]
        assert line["agreement"] == 0.25
        assert line["kept_mass"] == 0.5
        assert line["scale"] > 0
        assert line["tokens_per_second"] > 0
        parts = ("data", "teacher", "student", "loss", "other", "figures")
        assert sum(line[f"time_{part}"] for part in parts) == pytest.approx(line["time_step"])
