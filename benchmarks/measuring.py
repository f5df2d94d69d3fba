"""Times and peak memory of a piece of work, each contender in a fresh process of its own.

A contender's process is started for one setting, makes itself ready and then waits on a pipe. Its
first run is measured for memory (nothing that an earlier run left behind can hide in the
allocator); further runs are measured for time, and the contenders of a setting take turns, so that
whatever else the machine does meets all of them. Memory is the highest resident size during the
run minus that before it; on a GPU the allocator's own peak.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ASSETS = Path(
    os.environ.get("XTOKEN_ASSETS", Path(__file__).resolve().parent.parent / ".cache" / "assets")
)
# As it was given: `bench_align`, whose text is used here, sets itself to one thread.
ENVIRONMENT = dict(os.environ)


@dataclass
class Measurement:
    """One contender in one setting: `first` run's memory, and the times of the runs after it."""

    name: str
    length: int
    device: str
    memory_mib: float = 0.0
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    value: float | None = None
    first_s: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Median wall time (of the first run if there is no other)."""
        return statistics.median(self.wall_s) if self.wall_s else self.first_s

    @property
    def cpu_seconds(self) -> float:
        """Median time of all threads of the process, which others' work does not add to."""
        return statistics.median(self.cpu_s) if self.cpu_s else float("nan")

    def plain(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "length": self.length,
            "device": self.device,
            "runs": len(self.wall_s),
            "memory_mib": round(self.memory_mib, 1),
            "wall_s": _spread(self.wall_s or [self.first_s]),
            "cpu_s": _spread(self.cpu_s),
            "first_run_s": round(self.first_s, 4),
            "value": self.value,
            **{name: round(value, 3) for name, value in self.extra.items()},
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 5) for name, value in found.items()}


# ---------------------------------------------------------------------- in a contender's process


def serve(make_ready: Callable[[], Callable[[], float | None]], device: str) -> None:
    """Make ready, then run once for each line on stdin and print what was measured.

    `make_ready` returns the work; the work returns a number (its loss) to check it by.
    """
    # Libraries print what they like: only this pipe carries answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    _load_kernels(device)
    work = make_ready()
    for line in sys.stdin:
        if line.strip() != "run":
            break
        before = reset_peak(device)
        wall, cpu = time.perf_counter(), time.process_time()
        value = work()
        if device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory = peak_mib(device) - before
        print(
            json.dumps({"wall": wall, "cpu": cpu, "memory": memory, "value": value}),
            file=answers,
            flush=True,
        )


def _load_kernels(device: str) -> None:
    """Load what the first operation of a process loads, so that it isn't taken for a loss's."""
    import torch

    x = torch.randn(8, 8, device=device, requires_grad=True)
    (x @ x).log_softmax(-1).sum().backward()


def reset_peak(device: str) -> float:
    """Forget the peak so far; return MiB in use."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _resident_mib("VmRSS")


def peak_mib(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return _resident_mib("VmHWM")


def _resident_mib(field_name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field_name}; this benchmark needs Linux.")


# ---------------------------------------------------------------------- in the parent


class Contender:
    """A child process that holds one contender in one setting."""

    def __init__(self, script: str, arguments: Sequence[str], measurement: Measurement) -> None:
        self.measurement = measurement
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def run(self) -> None:
        """Run once and note what it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            errors = self.process.stderr.read() if self.process.stderr else ""
            place = f"{self.measurement.name} at length {self.measurement.length}"
            raise SystemExit(f"{place} failed:\n{errors}")
        found = json.loads(answer)
        if not self.measurement.first_s:
            self.measurement.memory_mib = found["memory"]
            self.measurement.first_s = found["wall"]
            self.measurement.value = found["value"]
        else:
            self.measurement.wall_s.append(found["wall"])
            self.measurement.cpu_s.append(found["cpu"])

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def in_turns(
    contenders: Sequence[Contender], runs: int, *, runs_of: dict[str, int] | None = None
) -> list[Measurement]:
    """Run each contender once for memory, then all of them in turn for time, `runs` times.

    `runs_of` names contenders that take part in fewer rounds, because one run takes minutes.
    """
    try:
        for contender in contenders:
            contender.run()
        for round_number in range(runs):
            for contender in contenders:
                if round_number < (runs_of or {}).get(contender.measurement.name, runs):
                    contender.run()
    finally:
        for contender in contenders:
            contender.close()
    return [contender.measurement for contender in contenders]


def machine(device: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
    import numpy
    import torch

    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write a result through a temporary name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
