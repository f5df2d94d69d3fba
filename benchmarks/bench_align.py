"""Tokens a second of alignment, and of everything from text to a collated batch, on one core.

    .venv/bin/python benchmarks/bench_align.py
    .venv/bin/python benchmarks/bench_align.py --student DIR --teacher DIR --text FILE --json

Pairs of sequences have --length student tokens. `ids, one pair a call` is `align`, `ids, batches`
is `align_batch`, both from ids alone; `spans, batches` the same with byte spans; `plain loop` is
the definition (a set of cumulative offsets) in Python. `text to batch` is `build_dataset` and the
collator: the student's tokenising (twice for long documents: once whole, once by window), the
teacher's, alignment, packing into arrays, batches of 8.

Each figure is the median over --runs runs with the lowest and highest. CPU time leaves out what
other processes on the machine take (though not how they slow the caches); wall time does not.
Goals: 5,000,000 student tokens a second from ids, 50,000 from text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

# One core, set before the libraries that read it are loaded.
os.environ.update(
    RAYON_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import numpy as np

from xtoken.align import align, align_batch
from xtoken.data import PairCollator, Record, build_dataset
from xtoken.encode import encode_texts
from xtoken.vocab import Vocabulary

ASSETS = Path(
    os.environ.get("XTOKEN_ASSETS", Path(__file__).resolve().parent.parent / ".cache" / "assets")
)
BATCH = 8
GOALS = {"ids, one pair a call": 5e6, "ids, batches": 5e6, "text to batch": 5e4}

Pair = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def default_text() -> str:
    """Prose and code that every Python brings along: its help topics and some of its modules."""
    import inspect
    from pydoc_data import topics

    modules = ("argparse", "inspect", "decimal", "textwrap", "typing", "tarfile")
    code = [inspect.getsource(__import__(name)) for name in modules]
    return "\n\n".join([*topics.topics.values(), *code])


def cut_into_pairs(
    student: Vocabulary, teacher: Vocabulary, text: str, length: int, most: int
) -> list[Pair]:
    """Cut two encodings of one text at common borders, `length` student tokens a piece."""
    encodings = encode_texts(student, [text], bos=False) + encode_texts(teacher, [text], bos=False)
    (s_ids, s_ends), (t_ids, t_ends) = ((e.ids, e.spans[:, 1]) for e in encodings)
    common = np.intersect1d(s_ends, t_ends)
    pairs = []
    s = t = low = 0
    while s + length <= len(s_ids) and len(pairs) < most:
        high = common[np.searchsorted(common, s_ends[s + length - 1], side="right") - 1]
        s_stop, t_stop = (int(np.searchsorted(e, high, side="right")) for e in (s_ends, t_ends))
        spans = [
            e.spans[a:b] - low for e, a, b in zip(encodings, (s, t), (s_stop, t_stop), strict=True)
        ]
        pairs.append((s_ids[s:s_stop], t_ids[t:t_stop], *spans))
        s, t, low = s_stop, t_stop, int(high)
    return pairs


def plain_loop(student: Vocabulary, teacher: Vocabulary, pair: Pair) -> list[tuple[int, int]]:
    """The definition: consecutive common values of the cumulative offsets, bytes compared."""
    ends = []
    streams = []
    for vocab, ids in ((student, pair[0]), (teacher, pair[1])):
        position = 0
        own = {0}
        data = []
        for token in ids.tolist():
            piece = vocab.token_bytes(token)
            position += len(piece)
            own.add(position)
            data.append(piece)
        ends.append(own)
        streams.append(b"".join(data))
    common = sorted(ends[0] & ends[1])
    return [(a, b) for a, b in pairwise(common) if streams[0][a:b] == streams[1][a:b]]


def timed(function: Callable[[], object], tokens: int, runs: int) -> dict[str, float]:
    """Return tokens a second: medians, lowest and highest, by CPU and by wall time."""
    function()
    cpu, wall = [], []
    for _ in range(runs):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        function()
        cpu.append(tokens / (time.process_time() - begin_cpu))
        wall.append(tokens / (time.perf_counter() - begin))
    return {
        "cpu_median": statistics.median(cpu),
        "cpu_lowest": min(cpu),
        "cpu_highest": max(cpu),
        "wall_median": statistics.median(wall),
        "wall_lowest": min(wall),
        "wall_highest": max(wall),
    }


def measure(options: argparse.Namespace) -> dict[str, object]:
    student = Vocabulary.from_pretrained(options.student)
    teacher = Vocabulary.from_pretrained(options.teacher)
    text = Path(options.text).read_text() if options.text else default_text()
    pairs = cut_into_pairs(student, teacher, text, options.length, options.pairs)
    if not pairs:
        raise SystemExit(
            f"The text has fewer than {options.length} student tokens; give a longer one."
        )
    tokens = sum(len(pair[0]) for pair in pairs)
    groups = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    columns = [list(zip(*group, strict=True)) for group in groups]

    def batches(with_spans: bool) -> None:
        for s_ids, t_ids, s_spans, t_spans in columns:
            spans = {"student_spans": s_spans, "teacher_spans": t_spans} if with_spans else {}
            align_batch(student, teacher, s_ids, t_ids, **spans)

    alignments = [align(student, teacher, pair[0], pair[1]) for pair in pairs]
    for pair, alignment in zip(pairs[:3], alignments, strict=False):
        found = list(zip(alignment.byte_start.tolist(), alignment.byte_stop.tolist(), strict=True))
        assert found == plain_loop(student, teacher, pair)

    documents = [Record("text", "", text=text[: options.characters])]
    collate = PairCollator.of(student, [teacher])

    def from_text() -> int:
        dataset = build_dataset(documents, student, [teacher], max_length=options.length)
        for start in range(0, len(dataset), BATCH):
            collate([dataset[i] for i in range(start, min(start + BATCH, len(dataset)))])
        return dataset.statistics().tokens

    rows = {
        "ids, one pair a call": timed(
            lambda: [align(student, teacher, pair[0], pair[1]) for pair in pairs],
            tokens,
            options.runs,
        ),
        "ids, batches": timed(lambda: batches(False), tokens, options.runs),
        "spans, batches": timed(lambda: batches(True), tokens, options.runs),
        "plain loop": timed(
            lambda: [plain_loop(student, teacher, pair) for pair in pairs], tokens, options.runs
        ),
        "text to batch": timed(from_text, from_text(), options.runs),
    }
    counts = [alignment.counts() for alignment in alignments]
    return {
        "student": options.student,
        "teacher": options.teacher,
        "length": options.length,
        "pairs": len(pairs),
        "batch": BATCH,
        "runs": options.runs,
        "student_tokens": tokens,
        "coverage": float(np.mean([alignment.byte_coverage for alignment in alignments])),
        "chunks": {kind: sum(count[kind] for count in counts) for kind in counts[0]},
        "tokens_per_second": rows,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }


def table(result: dict) -> str:
    columns = ("median (lowest - highest)",) * 2
    lines = [
        f"{Path(result['student']).name} from {Path(result['teacher']).name}, {result['pairs']} "
        f"pairs of {result['length']} student tokens, {result['runs']} runs",
        f"{result['coverage']:.1%} of bytes aligned; chunks {result['chunks']}",
        f"{result['machine']}, Python {result['python']}, numpy {result['numpy']}",
        "",
        f"{'thousand student tokens a second':<32}{'CPU time':>30}{'wall time':>30}{'goal':>8}",
        f"{'':<32}{columns[0]:>30}{columns[1]:>30}",
    ]
    for name, row in result["tokens_per_second"].items():
        cells = [
            f"{row[f'{kind}_median'] / 1e3:,.0f} ({row[f'{kind}_lowest'] / 1e3:,.0f} - "
            f"{row[f'{kind}_highest'] / 1e3:,.0f})"
            for kind in ("cpu", "wall")
        ]
        goal = f"{GOALS[name] / 1e3:,.0f}" if name in GOALS else ""
        lines.append(f"{name:<32}{cells[0]:>30}{cells[1]:>30}{goal:>8}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default=str(ASSETS / "vocab" / "llama-3"))
    parser.add_argument("--teacher", default=str(ASSETS / "vocab" / "qwen2"))
    parser.add_argument("--text", help="a UTF-8 file (default: Python's own help and modules)")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--characters", type=int, default=200_000, help="for text to batch")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for folder in (options.student, options.teacher):
        if not Path(folder).exists():
            raise SystemExit(
                f"{folder} is not there; run `make assets` or give --student/--teacher."
            )
    result = measure(options)
    print(json.dumps(result, indent=2) if options.json else table(result))


if __name__ == "__main__":
    main()
