"""A run file from start to finish, on a tiny pair of models."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from xtoken.config import RunConfig, load_run
from xtoken.errors import ConfigError, DataError, TrainingError, UsageError
from xtoken.training import TrainingInterrupted, read_metrics, train
from xtoken.training.arguments import training_arguments

Make = Callable[..., RunConfig]


@pytest.fixture
def make_config(tiny_pair: tuple[Path, Path], tiny_text: list[str], tmp_path: Path) -> Make:
    """Return a function: changes to sections -> a run on the tiny pair."""
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_text * 4))

    def make(folder: str = "out", **changes: Any) -> RunConfig:
        plain: dict[str, Any] = {
            "student": {"model": str(tiny_pair[0])},
            "teachers": [{"model": str(tiny_pair[1])}],
            "data": {"train": str(data), "max_length": 48},
            "training": {},
            "output_dir": str(tmp_path / folder),
        }
        for name, value in changes.items():
            merge = isinstance(value, dict) and isinstance(plain.get(name), dict)
            plain[name] = {**plain[name], **value} if merge else value
        plain["training"] = {
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "logging_steps": 1,
            "save_steps": 2,
            "learning_rate": 3e-3,
            **plain["training"],
        }
        return RunConfig.parse(plain)

    return make


def quiet(config: RunConfig, **settings: Any) -> Any:
    return train(config, progress="none", **settings)


def logits_of(folder: Path, text: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


@pytest.mark.parametrize(
    ("kind", "advised"),
    [("gold", True), ("h_kl", True), ("strict", True), ("bpm", True), ("p_kl", False)],
)
def test_a_split_that_the_audit_finds_unsound_is_named(make_config: Make, kind, advised) -> None:
    said: list[str] = []
    quiet(make_config(loss={"kind": kind}, training={"max_steps": 1}), say=said.append)
    found = [line for line in said if "audit advises against" in line]
    assert bool(found) == advised
    assert all(f"against {kind} for teacher: " in line for line in found)


def test_a_run_leaves_a_student_and_its_story(make_config: Make, tiny_pair: Any) -> None:
    config = make_config(
        data={"eval_split": 0.2},
        training={"max_steps": 10, "eval_steps": 5},
        combine={"scaling": "dynamic"},
    )
    result = quiet(config)
    folder = Path(config.output_dir)
    assert result.steps == 10
    assert result.chunks_seen > 0
    for name in ("eval_loss", "eval_ce", "eval_kd", "eval_bpb", "eval_agreement"):
        assert name in result.before
        assert name in result.after
    # One text over and over: it is learned, and the loss towards the teacher falls.
    assert result.after["eval_kd"] < result.before["eval_kd"]
    assert logits_of(folder, "The quick").shape[-1] == 400
    assert not torch.equal(logits_of(folder, "The quick"), logits_of(tiny_pair[0], "The quick"))
    again = load_run(folder / "run.yaml")
    assert again.training_arguments() == config.training_arguments()
    assert again.data == config.data
    lines = read_metrics(folder)
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, 11))
    expected = {
        *("loss", "ce", "kd", "kd/teacher", "scale", "chunks", "bytes_aligned", "one_to_one"),
        *("kept_mass", "agreement", "teacher_bpb", "bpb", "grad_norm", "tokens_per_second"),
        *("time_step", "time_teacher", "time_student", "time_loss", "memory_gib"),
    }
    assert expected <= set(lines[-3])
    audits = json.loads((folder / "audit.json").read_text())
    assert audits[0]["verdict"]["x_token"] in ("p_kl", "h_kl")
    alignment = json.loads((folder / "alignment.json").read_text())[0]
    assert alignment["byte_coverage"] == 1.0
    assert sum(alignment["chunks"].values()) == alignment["supervised_chunks"]
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    tables = json.loads((folder / "evaluation.json").read_text())["tables"]
    assert {"before", "after", "teacher"} == set(tables[0]["columns"])
    card = (folder / "README.md").read_text()
    assert "bits per byte" in card
    assert "Path-KL" in card
    assert str(folder.parent) not in card
    assert not [path for path in folder.rglob("*") if "incomplete" in path.name]


def test_resuming_a_run_gives_the_same_student(make_config: Make) -> None:
    class Press(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    whole = make_config("whole", training={"max_steps": 6})
    quiet(whole)
    cut = make_config("cut", training={"max_steps": 6})
    with pytest.raises(TrainingInterrupted):
        quiet(cut, callbacks=[Press()])
    folder = Path(cut.output_dir)
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(UsageError, match=r"already holds a run.*--resume"):
        quiet(cut)
    result = quiet(cut, resume=True)
    assert result.resumed_from == folder / "checkpoint-3"
    assert (folder / "model.safetensors").read_bytes() == (
        Path(whole.output_dir) / "model.safetensors"
    ).read_bytes()
    weights = folder / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said: list[str] = []
    assert quiet(cut, resume=True, say=said.append).resumed_from == folder / "checkpoint-4"
    assert any("checkpoint-6: model.safetensors has" in line for line in said)
    assert quiet(make_config("fresh", training={"max_steps": 1}), resume="auto").steps == 1
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        quiet(make_config("nowhere"), resume=True)


def test_adapters_are_saved_and_merged(make_config: Make, tiny_pair: Any) -> None:
    pytest.importorskip("peft")
    from peft import PeftModel

    config = make_config(
        student={"lora": {"r": 4, "alpha": 8.0}},
        training={"learning_rate": 0.05, "activation_checkpointing": True},
    )
    quiet(config)
    folder = Path(config.output_dir)
    assert not (folder / "adapter_config.json").exists()
    merged = logits_of(folder, "The quick brown")
    base = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The quick brown", return_tensors="pt")
    with torch.no_grad():
        plain = base(**inputs).logits
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter"))(**inputs).logits
    assert (plain - adapted).abs().max() > 1e-3
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-4)
    checkpoint = folder / "checkpoint-4"
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not (checkpoint / "model.safetensors").exists()


def test_resuming_adapters_is_exact(make_config: Make) -> None:
    pytest.importorskip("peft")

    class Press(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    student = {"lora": {"r": 4, "dropout": 0.1}}
    quiet(make_config("whole", student=student))
    with pytest.raises(TrainingInterrupted):
        quiet(make_config("cut", student=student), callbacks=[Press()])
    cut = make_config("cut", student=student)
    quiet(cut, resume=True)
    folder = Path(cut.output_dir)
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (folder.parent / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"kind": "h_kl"}},
        {"loss": {"kind": "uld"}, "combine": {"scaling": "fixed"}},
        {"training": {"gradient_accumulation_steps": 2}, "combine": {"scaling": "dynamic_lagged"}},
        {"training": {"bf16": True, "activation_checkpointing": True}},
        {"data": {"packing": True, "max_length": 128}},
        {"student": {"dtype": "bfloat16"}},
    ],
)
def test_settings_that_must_run(make_config: Make, changes: dict[str, Any]) -> None:
    changes.setdefault("training", {})
    changes["training"]["max_steps"] = 2
    result = quiet(make_config(**changes))
    assert result.last["loss"] > 0
    assert "kd/teacher" in result.last


def test_without_distillation_no_teacher_is_loaded(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xtoken.training import assembly

    def load(*args: Any) -> None:
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr(assembly, "load_teacher", load)
    config = make_config(combine={"kd": 0.0}, data={"eval_split": 0.2})
    result = quiet(config)
    assert result.last["loss"] == pytest.approx(result.last["ce"])
    assert "eval_bpb" in result.after
    card = (Path(config.output_dir) / "README.md").read_text()
    assert "without a teacher" in card
    assert "P-KL" not in card


def test_two_teachers_one_of_the_students_own_kind(make_config: Make, tiny_pair: Any) -> None:
    said: list[str] = []
    config = make_config(
        teachers=[
            {"model": str(tiny_pair[1]), "weight": 0.8},
            {"model": str(tiny_pair[0]), "weight": 0.2, "name": "twin"},
        ]
    )
    result = quiet(config, say=said.append)
    assert any("twin has the student's own tokenizer" in line for line in said)
    last = result.last
    assert last["kd"] == pytest.approx(0.8 * last["kd/teacher"] + 0.2 * last["kd/twin"])
    assert last["one_to_one/twin"] == 1.0
    first = read_metrics(config.output_dir)[0]
    # The twin is the student itself, so there is nothing to learn from it yet.
    assert first["kd/twin"] == pytest.approx(0.0, abs=1e-5)
    assert first["agreement/twin"] == 1.0
    assert first["bpb"] == pytest.approx(first["teacher_bpb/twin"], rel=1e-4)


def test_chats_are_masked_alike_and_nothing_supervised_is_an_error(
    make_config: Make, tmp_path: Path
) -> None:
    rows = [{"prompt": "The quick", "completion": " brown fox"}] * 8
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = quiet(make_config(data={"train": str(path)}, training={"max_steps": 1}))
    assert result.last["chunks"] > 0
    with pytest.raises(DataError, match=r"raise data\.max_length"):
        quiet(make_config("none", data={"train": str(path), "max_length": 2}))
    assert not (tmp_path / "none" / "metrics.jsonl").exists()


def test_sequences_that_the_student_can_not_hold(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("dog " * 2000)
    with pytest.raises(ConfigError, match="positions for 256 tokens"):
        quiet(make_config(data={"train": str(path), "max_length": 512}))


def test_the_best_checkpoint_by_bits_per_byte_is_the_lowest(make_config: Make) -> None:
    config = make_config(
        data={"eval_split": 0.2},
        training={
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_bpb",
            "eval_steps": 2,
            "learning_rate": 0.5,
        },
    )
    assert training_arguments(config).greater_is_better is False
    result = quiet(config)
    values = [line["eval_bpb"] for line in read_metrics(config.output_dir) if "eval_bpb" in line]
    assert result.after["eval_bpb"] == pytest.approx(min(values[1:]), rel=1e-5)


def test_what_transformers_refuses_is_a_mistake_in_the_run_file(make_config: Make) -> None:
    config = make_config(
        data={"eval_split": 0.2},
        training={
            "load_best_model_at_end": True,
            "save_strategy": "epoch",
            "eval_steps": 3,
            "eval_strategy": "steps",
        },
    )
    with pytest.raises(ConfigError, match="training: "):
        quiet(config)


def test_output_dir_must_not_be_a_file(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        quiet(make_config())


class FakeHub:
    """Takes what would be uploaded, and what the folder held then."""

    def __init__(self) -> None:
        self.uploads: list[dict[str, Any]] = []

    def upload_folder(self, **settings: Any) -> None:
        folder = Path(settings["folder_path"])
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        self.uploads.append({**settings, "files": names})


@pytest.mark.parametrize("student", [{}, {"lora": {"r": 2}}])
def test_pushing_to_the_hub_sends_the_finished_folder(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, student: dict[str, Any]
) -> None:
    import transformers.trainer as upstream

    hub = FakeHub()
    monkeypatch.setattr(upstream, "hf_api", lambda: hub)
    monkeypatch.setattr(
        upstream.Trainer,
        "init_hf_repo",
        lambda self, *args, **kwargs: setattr(self, "hub_model_id", "someone/student"),
    )
    config = make_config(student=student, training={"push_to_hub": True, "hub_strategy": "end"})
    quiet(config)
    last = hub.uploads[-1]
    assert last["repo_id"] == "someone/student"
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= last["files"]
    assert "adapter_config.json" not in last["files"]
    assert ("adapter/adapter_config.json" in last["files"]) == bool(student)
    assert "Path-KL" in (Path(config.output_dir) / "README.md").read_text()


def test_a_hub_out_of_reach_is_told(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.trainer as upstream

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError("Offline mode is enabled.")

    monkeypatch.setattr(upstream.Trainer, "init_hf_repo", refuse)
    with pytest.raises(TrainingError, match=r"training\.push_to_hub.*Offline mode"):
        quiet(make_config(training={"push_to_hub": True}))


def test_orders_that_can_not_be_resumed_are_refused(make_config: Make) -> None:
    config = make_config(training={"train_sampling_strategy": "group_by_length"})
    with pytest.raises(ConfigError, match="expected random or sequential"):
        quiet(config)


def _rank(rank: int, port: int, plain: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    train(RunConfig.parse(plain), progress="none")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("student", [{}, {"lora": {"r": 4}}])
def test_two_ranks_make_the_student_of_one(make_config: Make, student: dict[str, Any]) -> None:
    settings = {"max_steps": 3, "learning_rate": 0.01, "optim": "sgd"}
    sections = {"student": student, "data": {"eval_split": 0.2}}
    one = make_config("one", **sections, training=settings)
    quiet(one)
    two = make_config("two", **sections, training={**settings, "per_device_train_batch_size": 2})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(port, two.to_dict()), nprocs=2)
    folders = [Path(config.output_dir) for config in (one, two)]
    expected, found = (load_file(folder / "model.safetensors") for folder in folders)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert names[0] == names[1]
    assert len(read_metrics(folders[0])) == len(read_metrics(folders[1]))
