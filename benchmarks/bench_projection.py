"""Time and memory of building a projection and of an audit, for two large vocabularies.

    .venv/bin/python benchmarks/bench_projection.py
    .venv/bin/python benchmarks/bench_projection.py --student DIR --teacher DIR --runs 7 --json

Each run is a fresh process, so that nothing is cached; imports are done before the clock starts.
`build` is `Projection.build` alone (`cpu` sums over threads and does not grow when others use
the machine), `memory` the peak of the process above what it held when the
build began, `audit` everything from two directories to the finished report. Linux only (the peak
is read from /proc). Goals: build at most 5 s and 1 GB, audit under 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ASSETS = Path(
    os.environ.get("XTOKEN_ASSETS", Path(__file__).resolve().parent.parent / ".cache" / "assets")
)
MEASURES = (
    "load_s",
    "build_s",
    "build_cpu_s",
    "build_memory_mb",
    "save_load_s",
    "audit_s",
    "audit_cpu_s",
)


def resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; this benchmark needs Linux.")


def measure(student: str, teacher: str, what: str) -> dict[str, float]:
    """Run one measurement in this process."""
    import tempfile

    # Warm imports: what a long-lived process has loaded already.
    import tokenizers
    import transformers

    from xtoken.audit import audit
    from xtoken.projection import Projection, build, store  # noqa: F401
    from xtoken.vocab import Vocabulary

    _ = tokenizers.Tokenizer, transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast
    start, start_cpu = time.perf_counter(), time.process_time()
    vocabularies = [Vocabulary.from_pretrained(name) for name in (student, teacher)]
    loaded = time.perf_counter()
    if what == "audit":
        audit(*vocabularies)
        return {
            "audit_s": time.perf_counter() - start,
            "audit_cpu_s": time.process_time() - start_cpu,
        }
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    begin, begin_cpu = time.perf_counter(), time.process_time()
    projection = Projection.build(*vocabularies)
    built, built_cpu = time.perf_counter(), time.process_time()
    peak = resident_mb("VmHWM")
    with tempfile.TemporaryDirectory() as folder:
        projection.save(Path(folder) / "w.safetensors")
        Projection.load(Path(folder) / "w.safetensors", *vocabularies)
        stored = time.perf_counter()
    return {
        "load_s": loaded - start,
        "build_s": built - begin,
        "build_cpu_s": built_cpu - begin_cpu,
        "build_memory_mb": peak - before,
        "save_load_s": stored - built,
    }


def in_child(student: str, teacher: str, what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, "--student", student]
    output = subprocess.run(
        [*command, "--teacher", teacher], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, float] = json.loads(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default=str(ASSETS / "vocab" / "llama-3"))
    parser.add_argument("--teacher", default=str(ASSETS / "vocab" / "qwen2"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("build", "audit"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.student, options.teacher, options.child)))
        return
    for folder in (options.student, options.teacher):
        if not Path(folder).exists():
            raise SystemExit(
                f"{folder} is not there; run `make assets` or give --student/--teacher."
            )
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(options.runs):
        for what in ("build", "audit"):
            for name, value in in_child(options.student, options.teacher, what).items():
                found[name].append(value)
    result = {
        "student": options.student,
        "teacher": options.teacher,
        "runs": options.runs,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{
            name: {
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
            }
            for name, values in found.items()
        },
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{Path(options.student).name} x {Path(options.teacher).name}, {options.runs} runs each")
    print(f"{result['machine']}, Python {result['python']}")
    print(f"{'':18}{'median':>10}{'min':>10}{'max':>10}")
    for name in MEASURES:
        row = result[name]
        print(f"{name:18}{row['median']:10.2f}{row['min']:10.2f}{row['max']:10.2f}")


if __name__ == "__main__":
    main()
