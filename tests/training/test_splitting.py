"""Cutting a step into micro-batches or ranks, and padding, must not change the update."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import (
    Collator,
    make_examples,
    make_objective,
    make_trainer,
    weights_of,
)

from xtoken.training.combine import Combine
from xtoken.training.counts import drop_examples, local_counts, next_targets

SCALINGS = ("fixed", "dynamic", "dynamic_lagged")


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=2e-5, rtol=1e-4, msg=name)


def train(folder: Path, size: int, accumulate: int, **settings: Any) -> dict[str, Any]:
    trainer = make_trainer(
        folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        learning_rate=0.01,
        **settings,
    )
    before = weights_of(trainer)
    trainer.train()
    after = weights_of(trainer)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    return after


@pytest.mark.parametrize("scaling", SCALINGS)
def test_accumulation_changes_no_update(tmp_path: Path, scaling: str) -> None:
    # 14 examples: the epoch's last step has 2 of 4, and micro-batches without any chunk occur.
    examples = make_examples(14)
    combine = Combine(kd=0.7, ce=1.3, scaling=scaling)
    whole = train(tmp_path, 4, 1, examples=examples, combine=combine, max_steps=5)
    for size, accumulate in ((2, 2), (1, 4)):
        split = train(tmp_path, size, accumulate, examples=examples, combine=combine, max_steps=5)
        assert_same(whole, split)


def test_accumulation_with_two_teachers_of_uneven_support(tmp_path: Path) -> None:
    examples = make_examples(8, teachers=2)
    for example in examples[::2]:
        example["teachers"][1]["chunks"] = []
    results = [
        train(
            tmp_path,
            size,
            4 // size,
            examples=examples,
            objective=make_objective(2, (0.8, 0.2)),
            combine=Combine(scaling="dynamic"),
        )
        for size in (4, 1)
    ]
    assert_same(*results)


def test_a_mean_of_micro_batch_means_would_differ(tmp_path: Path) -> None:
    """The examples are uneven enough for the wrong normalisation to show."""
    examples = make_examples(8)
    lengths = [len(example["ids"]) for example in examples]
    assert max(lengths) > 2 * min(lengths)
    trainer = make_trainer(tmp_path, examples=examples, combine=Combine(scaling="fixed"))
    batch = Collator()(examples[:4])
    halves = [Collator()(examples[:2]), Collator()(examples[2:4])]

    def mean(part: dict[str, Any]) -> float:
        parts = trainer.objective(trainer.model, part)
        return float(parts.kd[0].total.detach() / parts.kd[0].count)

    assert abs(mean(batch) - sum(map(mean, halves)) / 2) > 1e-4


@pytest.mark.parametrize("scaling", ["fixed", "dynamic"])
def test_left_and_right_padding_give_the_same_update(tmp_path: Path, scaling: str) -> None:
    examples = make_examples(8)
    combine = Combine(scaling=scaling)
    right = train(tmp_path, 4, 1, examples=examples, combine=combine, side="right")
    left = train(tmp_path, 4, 1, examples=examples, combine=combine, side="left")
    assert_same(right, left)


def test_the_forward_only_pass_sees_the_same_dropout(tmp_path: Path) -> None:
    """Measured scale = CE / KD of the very pass that is trained on, dropout included."""
    trainer = make_trainer(
        tmp_path,
        examples=make_examples(8),
        dropout=0.5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        combine=Combine(scaling="dynamic"),
    )
    trainer.train()
    for line in trainer.state.log_history[:-1]:
        assert line["scale"] == pytest.approx(line["ce"] / line["kd"], rel=1e-5)
        assert line["loss"] == pytest.approx(2 * line["ce"], rel=1e-5)


def test_the_lagged_scale_is_the_ratio_of_the_step_before(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        examples=make_examples(16),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        combine=Combine(scaling="dynamic_lagged"),
    )
    trainer.train()
    lines = trainer.state.log_history[:-1]
    ratios = [line["ce"] / line["kd"] for line in lines]
    scales = [line["scale"] for line in lines]
    assert scales == pytest.approx([ratios[0], *ratios[:-1]], rel=1e-4)


def test_counts_and_targets() -> None:
    labels = torch.tensor([[-100, 5, 6, -100], [7, -100, -100, 8]])
    # The first label of a row is predicted by nothing inside the row.
    assert next_targets(labels).tolist() == [5, 6, -100, -100, -100, -100, 8, -100]
    table = torch.tensor([[0, 1, 0, 1, 0], [5, 1, 3, 1, 0], [6, 1, 4, 1, 0]])
    batch = {"input_ids": labels, "labels": labels, "teachers": [{"chunks": table}]}
    count = lambda batch, index: len(batch["teachers"][index]["chunks"])  # noqa: E731
    assert local_counts([batch], 1, count).tolist() == [3, 3]
    kept = drop_examples(batch, torch.tensor([True, False]))
    assert local_counts([kept], 1, count).tolist() == [2, 1]
    assert local_counts([batch], 1, count).tolist() == [3, 3]


RANK_CASES = (("fixed", 1), ("dynamic", 2))


def rank_trainer(folder: Path, scaling: str, **settings: Any) -> Any:
    return make_trainer(
        folder,
        examples=make_examples(13),
        learning_rate=0.01,
        max_steps=5,
        combine=Combine(scaling=scaling),
        eval_dataset=make_examples(7, seed=3),
        eval_strategy="steps",
        eval_steps=5,
        **settings,
    )


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    for scaling, accumulate in RANK_CASES:
        trainer = rank_trainer(
            Path(folder) / scaling,
            scaling,
            per_device_train_batch_size=2 // accumulate,
            gradient_accumulation_steps=accumulate,
            save_strategy="steps",
            save_steps=5,
            ddp_backend="gloo",
        )
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        if rank == 0:
            result = {"weights": weights_of(trainer), "log": trainer.state.log_history}
            torch.save(result, Path(folder) / scaling / "rank0.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    # 13 examples: the last step of an epoch is uneven, and the fill-up examples must not count.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(port, str(tmp_path / "two")), nprocs=2)
    names = ("loss", "ce", "kd", "kd/t0", "chunks", "scale", "agreement", "teacher_bpb", "bpb")
    for scaling, _ in RANK_CASES:
        folder = tmp_path / "two" / scaling
        two = torch.load(folder / "rank0.pt", weights_only=False)
        one = rank_trainer(tmp_path / "one", scaling, per_device_train_batch_size=4)
        one.train()
        assert_same(weights_of(one), two["weights"])
        for mine, other in zip(one.state.log_history, two["log"], strict=True):
            for name in [*names, *(f"eval_{name}" for name in names)]:
                if name in mine:
                    assert other[name] == pytest.approx(mine[name], rel=1e-4), name
        assert (folder / "checkpoint-5" / "rng_state_1.pth").exists()
        assert not list(folder.glob(".*"))
