"""The benchmark scripts run from end to end in their smallest setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_models import train_tokenizer
from xtoken.losses import make_loss

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tokenizer directories as a script's options."""
    options = []
    for side, size, split in (("student", 400, False), ("teacher", 330, True)):
        folder = tmp_path_factory.mktemp(side)
        train_tokenizer(vocab_size=size, split_digits=split).save_pretrained(folder)
        options += [f"--{side}", str(folder)]
    return options


def run(script: str, *options: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options, "--device", "cpu"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_losses_from_logits(pair: list[str], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    names = "floor,p_kl,p_kl_batch,naive_p_kl"
    run("bench_losses.py", *pair, "--lengths", "16", "--runs", "1", "--only", names,
        "--json", str(file))  # fmt: skip
    result = json.loads(file.read_text())
    found = {m["name"]: m for m in result["measurements"]}
    assert set(found) == set(names.split(","))
    assert all(m["wall_s"]["median"] > 0 and m["runs"] == 1 for m in found.values())
    assert found["naive_p_kl"]["value"] == pytest.approx(found["p_kl_batch"]["value"], rel=1e-5)
    assert any(row["ratio"] == "p_kl / floor" for row in result["ratios"])


def test_chunked_head(pair: list[str], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    run("bench_chunked_head.py", *pair, "--hidden", "8,12", "--length", "16", "--runs", "1",
        "--memory-lengths", "", "--only", "whole,chunked,topk_chunked",
        "--json", str(file))  # fmt: skip
    result = json.loads(file.read_text())
    found = {m["name"]: m for m in result["measurements"]}
    assert found["chunked"]["value"] == pytest.approx(found["whole"]["value"], rel=1e-5)
    goals = {row["goal"] for row in result["ratios"]}
    assert {"at most 1.25", "at most 1000 MB"} <= goals


@pytest.mark.parametrize("kind", ["p_kl", "h_kl", "gold", "uld", "direct"])
def test_plain_forms_compute_the_losses(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fast paths are timed against has the same value and gradient."""
    from losses.helpers import identity_projection, make_case, small_projection

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import naive

    projection = identity_projection(7) if kind == "direct" else small_projection()
    case = make_case(projection)
    settings = {
        "p_kl": {"support": "topk_batch", "pooling": "mean"},
        "h_kl": {"pooling": "mean"},
        "gold": {"pooling": "mean"},
    }.get(kind, {})
    V, U = projection.student_size, projection.teacher_size
    student, teacher = case.student[:, :V].float(), case.teacher[:, :U].float()
    # Plain forms know no masks.
    student[:, torch.from_numpy(projection.student_masked)] = -1e4
    teacher[:, torch.from_numpy(projection.teacher_masked)] = -1e4
    if kind == "p_kl":
        plain = naive.NaivePKL(projection, case.chunks, "cpu")
    elif kind in ("h_kl", "gold"):
        plain = naive.NaivePartition(projection, case.chunks, "cpu", gold=kind == "gold")
    else:
        form = naive.NaiveULD if kind == "uld" else naive.NaiveDirect
        plain = form(projection, case.chunks, "cpu")
    loss = make_loss(kind, projection=projection, **settings)
    found = []
    for function in (plain, lambda s, t: loss(s, t, case.chunks).total):
        leaf = student.clone().requires_grad_()
        value = function(leaf, teacher)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_whole_step(tmp_path: Path) -> None:
    """Needs the real small models; minutes."""
    assets = Path(os.environ.get("XTOKEN_ASSETS", BENCHMARKS.parent / ".cache" / "assets"))
    if not (assets / "models" / "smollm2-135m").exists():
        pytest.skip("models/smollm2-135m is not fetched: `make assets`")
    model = str(assets / "models" / "smollm2-135m")
    file = tmp_path / "result.json"
    run("bench_step.py", "--student", model, "--teacher", model, "--length", "16", "--steps", "1",
        "--only", "p_kl", "--json", str(file))  # fmt: skip
    result = json.loads(file.read_text())
    assert {m["name"] for m in result["measurements"]} == {"cross_entropy", "p_kl"}
