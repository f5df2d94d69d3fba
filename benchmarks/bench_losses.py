"""Time and memory of every loss from logits, forward and backward, against other ways to do it.

    .venv/bin/python benchmarks/bench_losses.py            # short: five minutes
    .venv/bin/python benchmarks/bench_losses.py --full     # T = 256 ... 2048, five runs
    .venv/bin/python benchmarks/bench_losses.py --only p_kl,naive_p_kl,floor --lengths 512

One sequence of T student tokens, text of Python's own help cut by two real tokenizers, made-up
logits (float32 on a CPU, bf16 on a GPU). Each figure is one loss's forward and backward pass to
the student's logits. Contenders:

    floor      log-softmax of the student's logits forward and backward, of the teacher's forward
    p_kl ...   the losses with their default settings (`p_kl_batch`, `gold_mean` ...:
               with the settings of the plain form or peer that they are compared with)
    naive_...  the plain form, as public code computes it (`naive.py`)
    trl        TRL's hybrid `ULDLoss`, at the shortest length alone: it takes half a minute there

`memory` is the peak beyond the logits, the student's gradient (as large as its logits) included.
Goals: P-KL at least 2.5x faster than its plain form with at most half the memory, H-KL and GOLD at
least 5x with at most a third, P-KL within 1.5x of the floor, Path-KL within 1.5x of P-KL, GOLD at
least 50x faster than TRL.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measuring import (
    Contender,
    Measurement,
    in_turns,
    machine,
    serve,
    write_json,
)
from pages import update
from pair import Case, common_options, contenders, make_cases, scratch_folder
from tables import Ratio, compare, costs, show

Work = Callable[[], float]

# Our contenders: the loss and its settings.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "p_kl": ("p_kl", {}),
    "p_kl_topk_rest": ("p_kl", {"support": "topk_rest"}),
    "p_kl_batch": ("p_kl", {"support": "topk_batch", "pooling": "mean"}),
    "h_kl": ("h_kl", {}),
    "h_kl_mean": ("h_kl", {"pooling": "mean"}),
    "gold": ("gold", {}),
    "gold_mean": ("gold", {"pooling": "mean"}),
    "gold_chain_rule": ("gold", {"pooling": "chain_rule"}),
    "uld": ("uld", {}),
    "alm": ("alm", {}),
    "strict": ("strict", {}),
    "csd": ("csd", {}),
    "bpm": ("bpm", {}),
    "path_kl": ("path_kl", {}),
    "direct": ("direct", {}),
}
THEIRS = ("floor", "naive_p_kl", "naive_h_kl", "naive_gold", "naive_uld", "naive_direct", "trl")
BY_BYTES = ("csd", "bpm", "path_kl")
# What computes the same value, to show that the plain forms are the losses they stand for.
SAME_VALUE = {
    "naive_p_kl": "p_kl_batch",
    "naive_h_kl": "h_kl_mean",
    "naive_gold": "gold_mean",
    "naive_uld": "uld",
    "naive_direct": "direct",
    "trl": "gold_chain_rule",
}
# What the short form runs, by length: TRL at the first alone, the plain forms at the second.
SHORT = {
    256: ("floor", "p_kl", "h_kl", "gold", "gold_chain_rule", "trl"),
    512: ("floor", "path_kl", "p_kl", "p_kl_topk_rest", "h_kl", "gold", "uld", "direct",
          "naive_p_kl", "naive_h_kl", "naive_gold"),
}  # fmt: skip
# What the page about the losses shows: each with its own defaults, and the length.
SHOWN = ("direct", "p_kl", "p_kl_topk_rest", "path_kl", "h_kl", "gold", "uld", "alm", "strict",
         "csd", "bpm")  # fmt: skip
SHOWN_LENGTH = 512
# The plain forms' dense chunk products grow with the square of the length.
NAIVE_LONGEST = 1024
RATIOS = [
    Ratio("naive_p_kl", "p_kl", "seconds", at_least=2.5, lengths=(512, 1024)),
    Ratio("naive_p_kl", "p_kl", "memory", at_least=2.0, lengths=(512, 1024)),
    Ratio("naive_h_kl", "h_kl", "seconds", at_least=5.0, lengths=(512, 1024)),
    Ratio("naive_h_kl", "h_kl", "memory", at_least=3.0, lengths=(512, 1024)),
    Ratio("naive_gold", "gold", "seconds", at_least=5.0, lengths=(512, 1024)),
    Ratio("naive_gold", "gold", "memory", at_least=3.0, lengths=(512, 1024)),
    # With the plain forms' own settings.
    Ratio("naive_p_kl", "p_kl_batch", "seconds"),
    Ratio("naive_h_kl", "h_kl_mean", "seconds"),
    Ratio("naive_gold", "gold_mean", "seconds"),
    Ratio("naive_uld", "uld", "seconds"),
    Ratio("naive_direct", "direct", "seconds"),
    Ratio("p_kl", "floor", "seconds", at_most=1.5),
    Ratio("path_kl", "p_kl", "seconds", at_most=1.5),
    Ratio("trl", "gold", "seconds", at_least=50.0, lengths=(256,)),
    Ratio("trl", "gold_chain_rule", "seconds", at_least=50.0, lengths=(256,)),
]


def make_ready(name: str, case: Case, device: str) -> Work:
    """Return one contender's work: a forward and a backward pass, whose value it returns."""
    student_NV = case.logits("student", device).requires_grad_()
    teacher_MU = case.logits("teacher", device)
    chunks = case.chunks(device)
    count = len(chunks)
    if name == "floor":
        gradient_NV = torch.ones_like(student_NV[:1]).expand_as(student_NV).contiguous()

        def floor() -> float:
            with torch.no_grad():
                teacher_MU.log_softmax(-1)
            torch.autograd.grad(student_NV.log_softmax(-1), student_NV, gradient_NV)
            return 0.0

        return floor
    function = _loss(name, case, device)

    def work() -> float:
        mean = function(student_NV, teacher_MU) / (1 if name == "trl" else count)
        torch.autograd.grad(mean, student_NV)
        return float(mean)

    return work


def _loss(name: str, case: Case, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    chunks = case.chunks(device)
    if name in OURS:
        from xtoken.losses import Direct, make_loss

        kind, settings = OURS[name]
        if kind == "direct":
            loss = Direct(case.projection.student_size)
        else:
            if kind in BY_BYTES:
                settings = settings | case.vocabularies()
            loss = make_loss(kind, projection=case.projection, **settings)
        loss.to(device)
        return lambda student_NV, teacher_MU: loss(student_NV, teacher_MU, chunks).total
    if name == "trl":
        from trl_peer import TrlHybrid

        return TrlHybrid(case)
    import naive

    if name in ("naive_h_kl", "naive_gold"):
        return naive.NaivePartition(case.projection, chunks, device, gold=name == "naive_gold")
    plain = {
        "naive_p_kl": naive.NaivePKL,
        "naive_uld": naive.NaiveULD,
        "naive_direct": naive.NaiveDirect,
    }
    return plain[name](case.projection, chunks, device)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders at all lengths."""
    measurements: list[Measurement] = []
    with scratch_folder() as scratch:
        folder = Path(scratch)
        pair = make_cases(folder, options.student, options.teacher, options.lengths, logits=True)
        for length in options.lengths:
            names = [
                name
                for name in options.only or SHORT.get(length, SHORT[512])
                if (name != "trl" or (length == min(options.lengths) and options.device == "cpu"))
                and (not name.startswith("naive") or length <= options.naive_longest)
            ]
            contenders = [
                Contender(
                    __file__,
                    ["--worker", name, str(folder), str(length), options.device],
                    Measurement(name, length, options.device),
                )
                for name in names
            ]
            # TRL's run of half a minute would be most of the time that everything takes.
            few = {} if options.full else {"trl": 1}
            measurements += in_turns(contenders, options.runs, runs_of=few)
    return {
        "title": "Losses from logits",
        "what": "forward and backward of the loss alone; memory beyond the logits, with gradient",
        "pair": pair,
        "machine": machine(options.device),
        "measurements": [m.plain() for m in measurements],
        "ratios": compare(measurements, RATIOS),
        "notes": _values(measurements) + _growth(measurements),
    }


def _values(measurements: list[Measurement]) -> list[str]:
    """Say how far the plain forms' values are from ours."""
    notes = []
    found = {(m.name, m.length): m.value for m in measurements}
    for (name, length), value in found.items():
        ours = found.get((SAME_VALUE.get(name, ""), length))
        if value is not None and ours is not None:
            off = abs(value - ours) / max(abs(ours), 1e-12)
            notes.append(
                f"T = {length}: {name} gives {value:.6g}, {SAME_VALUE[name]} {ours:.6g} "
                f"({off:.1e} apart)."
            )
    return notes


def _growth(measurements: list[Measurement]) -> list[str]:
    """Say how time and memory of our losses grow from the shortest to the longest text."""
    notes = []
    for name in OURS:
        own = sorted((m for m in measurements if m.name == name), key=lambda m: m.length)
        if len(own) > 1:
            first, last = own[0], own[-1]
            notes.append(
                f"{name}, T x {last.length / first.length:g}: time x "
                f"{last.seconds / first.seconds:.2f}, memory x "
                f"{last.memory_mib / max(first.memory_mib, 1e-9):.2f}."
            )
    return notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common_options(parser, worker=4)
    parser.add_argument("--full", action="store_true", help="all losses, T up to 2048")
    parser.add_argument("--lengths", help="student tokens, e.g. 256,512")
    parser.add_argument("--only", help="contenders, e.g. floor,p_kl,naive_p_kl")
    parser.add_argument("--naive-longest", type=int, default=NAIVE_LONGEST)
    parser.add_argument("--page", type=Path, help="put the losses' costs into this page")
    options = parser.parse_args()
    if options.worker:
        name, folder, length, device = options.worker
        serve(lambda: make_ready(name, Case.load(folder, int(length)), device), device)
        return
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    default = "256,512,1024,2048" if options.full else "256,512"
    options.lengths = [int(length) for length in (options.lengths or default).split(",")]
    everything = (*OURS, *THEIRS)
    if options.only or options.full:
        options.only = contenders(options.only, everything, everything)
    needed = {"floor", *SHOWN} if options.page else set()
    if not needed <= set(options.only or ()) or (needed and SHOWN_LENGTH not in options.lengths):
        parser.error(f"--page shows {', '.join(sorted(needed))} at --lengths {SHOWN_LENGTH}")
    result = measure(options)
    if options.json:
        write_json(options.json, result)
    if options.page:
        update(options.page, {"costs": costs(result, SHOWN, SHOWN_LENGTH)})
    show(result)


if __name__ == "__main__":
    main()
