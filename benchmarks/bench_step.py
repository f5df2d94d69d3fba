"""A whole training step of a real pair: how much of it the loss and the alignment take.

    .venv/bin/python benchmarks/bench_step.py           # short
    .venv/bin/python benchmarks/bench_step.py --full    # longer sequences, more steps, two rounds

Gemma-3-270M (262,144 tokens) teaches SmolLM2-135M-Instruct (49,152); `make assets-all` puts both
in place, or give --student/--teacher. Runs of `xtoken.training.train` in processes of their own,
in turns: cross-entropy alone (the teacher is never asked), and each loss with cross-entropy. The
first and the last step of a run, which measure agreement too, are left out.

    step      from one optimizer step to the next, data excluded
    data      batches and alignment
    forward   the teacher's forward pass with its logits, by itself, on a batch of the run
    teacher, student, loss: the trainer's own phases. Where logits are formed in blocks, the heads'
              products are part of `loss`, so that these phases say nothing of its share.

Goals: loss and alignment (the step beyond cross-entropy's and the teacher's forward pass, and the
data) at most 15 % of the step; P-KL's step at most 1.15x that of cross-entropy plus the teacher's
forward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import ASSETS, ENVIRONMENT, Measurement, machine, write_json
from tables import judge, show

GEMMA, SMOLLM2 = ASSETS / "models" / "gemma-3-270m", ASSETS / "models" / "smollm2-135m"
CROSS_ENTROPY = "cross_entropy"
KINDS = ("p_kl", "path_kl", "h_kl", "gold")


def run_file(options: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    """Return a run's settings."""
    return {
        "student": {"model": options.student},
        "teachers": [{"model": options.teacher, "dtype": options.dtype}],
        "data": {"train": str(folder / "train.jsonl"), "max_length": options.length},
        "loss": {"kind": "p_kl" if kind == CROSS_ENTROPY else kind},
        "combine": {"kd": 0.0} if kind == CROSS_ENTROPY else {"kd": 1.0, "scaling": "fixed"},
        "training": {
            "max_steps": options.steps + 2,
            "per_device_train_batch_size": options.batch,
            "learning_rate": 1e-5,
            "logging_steps": options.steps + 2,
            "save_strategy": "no",
            "use_cpu": options.device == "cpu",
            "bf16": options.device == "cuda",
            "report_to": "none",
        },
        "output_dir": str(folder / kind),
        "seed": 0,
    }


def train_once(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train in this process; return the seconds of each step and of the phases."""
    import torch
    from transformers import TrainerCallback

    from xtoken.config import RunConfig
    from xtoken.training import train
    from xtoken.training.callbacks import read_metrics

    class Watch(TrainerCallback):
        """Notes when steps begin and end."""

        def __init__(self) -> None:
            self.began, self.began_cpu = 0.0, 0.0
            self.spent: list[float] = []
            self.spent_cpu: list[float] = []
            self.batch: dict[str, Any] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Keep what the teacher reads in one batch."""
            self.batch = next(iter(kwargs["train_dataloader"]))["teachers"][0]

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Note the time."""
            self.began, self.began_cpu = now(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Note the time since."""
            self.spent.append(now() - self.began)
            self.spent_cpu.append(time.process_time() - self.began_cpu)

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    watch = Watch()
    train(RunConfig.parse(settings), progress="none", callbacks=[watch])
    lines = [line for line in read_metrics(settings["output_dir"]) if line["kind"] == "train"]
    last = lines[-1]
    phases = {name[5:]: last[name] for name in last if name.startswith("time_")}
    forward = [0.0]
    if settings["combine"]["kd"]:
        from xtoken.models import load_causal_lm

        teacher = settings["teachers"][0]
        model = load_causal_lm(teacher["model"], dtype=teacher["dtype"]).eval()
        if torch.cuda.is_available():
            model.cuda()
        ids = {name: watch.batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            model(**ids)
            for _ in range(steps):
                began = now()
                model(**ids)
                forward.append(now() - began)
    return {
        "forward": statistics.median(forward[1:] or forward),
        "step": watch.spent[1 : steps + 1],
        "step_cpu": watch.spent_cpu[1 : steps + 1],
        "phases": phases,
        "memory": last["memory_gib"] * 1024,
        "loss": last["loss"],
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every kind in turn, `rounds` times."""
    from bench_align import default_text

    text = default_text()
    # Documents much longer than a sequence, so that sequences are full.
    documents = [text[start : start + 20_000] for start in range(0, len(text), 20_000)]
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (folder / "train.jsonl").write_text(lines)
    kinds = [CROSS_ENTROPY, *options.only]
    found = {kind: Measurement(kind, options.length, options.device) for kind in kinds}
    phases: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            run = _in_child(run_file(options, kind, folder), options.steps)
            m = found[kind]
            m.wall_s += run["step"]
            m.cpu_s += run["step_cpu"]
            m.memory_mib, m.value = max(m.memory_mib, run["memory"]), run["loss"]
            phases[kind].append(run["phases"] | {"forward": run["forward"]})
    rows = []
    base = found[CROSS_ENTROPY].seconds
    for kind in options.only:
        spent = {
            name: statistics.median(run.get(name, 0.0) for run in phases[kind])
            for name in ("step", "data", "forward", "teacher", "student", "loss", "figures")
        }
        found[kind].extra = spent
        whole = found[kind].seconds
        share = 100.0 * (whole - base - spent["forward"] + spent["data"]) / (whole + spent["data"])
        rows.append(judge(f"{kind}: loss + alignment", "% of step", options.length, share,
                          at_most=15.0, unit=" %"))  # fmt: skip
        name = f"{kind} / (cross-entropy + teacher's forward)"
        ratio = whole / (base + spent["forward"])
        rows.append(judge(name, "seconds", options.length, ratio, at_most=1.15))
    return {
        "title": "Whole training steps",
        "what": (
            f"{Path(options.teacher).name} teaches {Path(options.student).name}, batches of "
            f"{options.batch} x {options.length} student tokens, {options.dtype}; memory is the "
            f"process's peak"
        ),
        "machine": machine(options.device),
        "measurements": [m.plain() for m in found.values()],
        "ratios": rows,
        "notes": [
            f"{kind}: " + ", ".join(f"{k} {v:.3f} s" for k, v in found[kind].extra.items()) + "."
            for kind in options.only
        ],
    }


def _in_child(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps(settings), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{settings['output_dir']} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default=str(SMOLLM2))
    parser.add_argument("--teacher", default=str(GEMMA))
    parser.add_argument("--full", action="store_true", help="2 x 512 tokens, 6 steps, 2 rounds")
    parser.add_argument("--length", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="measured steps of a run")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", help=f"losses (default p_kl; --full: {', '.join(KINDS)})")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="write the result to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train_once(json.loads(options.child), options.steps)))
        return
    for folder in (options.student, options.teacher):
        if not Path(folder).exists():
            raise SystemExit(
                f"{folder} is not there; run `make assets-all` or give --student/--teacher."
            )
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.length = options.length or (512 if options.full else 256)
    options.batch = options.batch or (2 if options.full else 1)
    options.steps = options.steps or (6 if options.full else 5)
    options.rounds = options.rounds or (2 if options.full else 1)
    options.only = (
        options.only.split(",") if options.only else (KINDS if options.full else KINDS[:1])
    )
    with tempfile.TemporaryDirectory(prefix="xtoken-bench-") as scratch:
        result = measure(options, Path(scratch))
    if options.json:
        write_json(options.json, result)
    show(result)


if __name__ == "__main__":
    main()
