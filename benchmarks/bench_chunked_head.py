"""Losses from hidden states and output heads: peak memory and time, block by block and whole.

    .venv/bin/python benchmarks/bench_chunked_head.py           # short: small hidden sizes
    .venv/bin/python benchmarks/bench_chunked_head.py --full    # T = 2048, hidden 2048 and 2560

Made-up hidden states and heads over two real vocabularies; forward and backward to the student's
hidden states and head. Contenders:

    chunked          cross-entropy and P-KL with fixed weights through the chunked head
    whole            the same from full logits of both sides (they are made and kept by autograd)
    chunked_dynamic  exact dynamic scaling: a pass without gradient for the ratio, then `chunked`
    topk_chunked     P-KL `topk_rest` on a stored signal of 64 teacher ids, chunked head
    ce_chunked       cross-entropy alone through the chunked head
    ce_whole         cross-entropy from full logits, plain PyTorch
    p_kl, h_kl, ...  with --only: one loss by itself, chunked

`memory` is the peak beyond weights, hidden states and the gradients of both. Goals: under 1,000 MB
at every length and the same at all of them, at most 1.25x the time of `whole`; top-k + REST at
most 1.3x cross-entropy from the same hidden states. Lengths other than the timed one run once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as plain_cross_entropy
from torch.nn.functional import linear

from measuring import Contender, Measurement, in_turns, machine, serve, write_json
from pair import Case, common_options, contenders, make_cases, mapped, scratch_folder, write_random
from tables import Ratio, compare, judge, show
from xtoken.losses import Hidden, OutputHead, Term, TopK, cross_entropy_term, make_loss, run_terms
from xtoken.losses.sources import Source, as_source

STANDARD = ("ce_whole", "ce_chunked", "topk_chunked", "whole", "chunked", "chunked_dynamic")
ALONE = ("p_kl", "h_kl", "gold", "uld", "alm", "strict")
TOP_K = 64
MEMORY_MB = 1000.0
RATIOS = [
    Ratio("chunked", "whole", "seconds", at_most=1.25),
    Ratio("chunked_dynamic", "whole", "seconds"),
    Ratio("ce_chunked", "ce_whole", "seconds"),
    Ratio("topk_chunked", "ce_chunked", "seconds", at_most=1.3),
    Ratio("topk_chunked", "ce_whole", "seconds", at_most=1.3),
]


class Model:
    """Hidden states and heads of both sides of a case."""

    def __init__(self, case: Case, sizes: tuple[int, int], device: str) -> None:
        self.case, self.device, self.chunks = case, device, case.chunks(device)
        rows = (len(case.student_ids), len(case.teacher_ids))
        tensors = [
            [
                mapped(case.folder / f"{side}-{what}-{size}{suffix}", (count, size), device)
                for what, count, suffix in (("states", n, f"-{case.length}"), ("head", -1, ""))
            ]
            for side, size, n in zip(("student", "teacher"), sizes, rows, strict=True)
        ]
        (self.states_ND, self.head_VD), (self.teacher_ND, self.teacher_head_UD) = tensors
        self.states_ND.requires_grad_()
        self.head_VD.requires_grad_()
        self.targets_N = self.chunks.student_target_N.masked_fill(
            self.chunks.student_target_N < 0, -100
        )
        self.leaves = [self.states_ND, self.head_VD]

    @property
    def gradient_mib(self) -> float:
        """Size of the gradients of the student's hidden states and head."""
        return sum(x.numel() * x.element_size() for x in self.leaves) / 2**20

    def loss(self, kind: str, **settings: Any) -> Any:
        """Return a loss of the pair."""
        return make_loss(kind, projection=self.case.projection, **settings).to(self.device)

    def student(self) -> Hidden:
        """Return the student as a source of rows."""
        return Hidden(self.states_ND, OutputHead(self.head_VD))

    def teacher(self) -> Hidden:
        """Return the teacher as a source of rows."""
        return Hidden(self.teacher_ND, OutputHead(self.teacher_head_UD))

    def stored(self) -> TopK:
        """Return the teacher's likeliest ids of each row, as a cache would hold them."""
        ids, values = [], []
        with torch.no_grad():
            for rows in self.teacher_ND.split(64):
                logp = linear(rows, self.teacher_head_UD).float().log_softmax(-1)
                top = logp.topk(min(TOP_K, logp.shape[1]), dim=-1)
                ids.append(top.indices)
                values.append(top.values)
        return TopK(torch.cat(ids), torch.cat(values))

    def backward(self, total: Tensor) -> float:
        """Find the gradients and drop them."""
        torch.autograd.grad(total, self.leaves)
        return float(total)


def make_ready(
    name: str, case: Case, sizes: tuple[int, int], device: str
) -> Callable[[], float | None]:
    """Return one contender's work."""
    model = Model(case, sizes, device)
    chunks = model.chunks
    tokens = float((model.targets_N >= 0).sum())
    if name == "ce_whole":

        def ce_whole() -> float:
            logits_NV = linear(model.states_ND, model.head_VD)
            return model.backward(plain_cross_entropy(logits_NV.float(), model.targets_N))

        return ce_whole
    if name == "ce_chunked":

        def ce_chunked() -> float:
            student = model.student()
            term = cross_entropy_term(student, model.targets_N, weight=1.0 / tokens)
            return model.backward(run_terms(student, [term])[0])

        return ce_chunked
    if name == "topk_chunked" or name in ALONE:
        settings = {"support": "topk_rest", "top_k": TOP_K} if name == "topk_chunked" else {}
        loss = model.loss("p_kl" if name == "topk_chunked" else name, **settings)
        signal: Source = model.stored() if name == "topk_chunked" else model.teacher()

        def alone() -> float:
            return model.backward(loss(model.student(), signal, chunks).total / len(chunks))

        return alone
    loss = model.loss("p_kl")

    def both(student: Source, teacher: Source, kd: float) -> tuple[Tensor, float]:
        """Return CE + kd * KD and exact dynamic scaling's factor."""
        ce_term = cross_entropy_term(student, model.targets_N, weight=1.0 / tokens)
        terms = [ce_term, Term(loss, chunks, teacher, kd / len(chunks))]
        total, (ce, found) = run_terms(student, terms)
        kd_mean = float(found.total) / len(chunks)
        return total, float(ce.total) / tokens / max(abs(kd_mean), 1e-6)

    def whole() -> float:
        student_NV = linear(model.states_ND, model.head_VD)
        with torch.no_grad():
            teacher_MU = linear(model.teacher_ND, model.teacher_head_UD)
        return model.backward(both(as_source(student_NV), as_source(teacher_MU), 1.0)[0])

    def chunked() -> float:
        return model.backward(both(model.student(), model.teacher(), 1.0)[0])

    def chunked_dynamic() -> float:
        with torch.no_grad():
            _, scale = both(model.student(), model.teacher(), 1.0)
        return model.backward(both(model.student(), model.teacher(), scale)[0])

    return {"whole": whole, "chunked": chunked, "chunked_dynamic": chunked_dynamic}[name]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all contenders at one length; run them once at the others for their memory."""
    measurements: list[Measurement] = []
    rows: list[dict[str, Any]] = []
    with scratch_folder() as scratch:
        folder = Path(scratch)
        lengths = sorted({options.length, *options.memory_lengths})
        pair = make_cases(folder, options.student, options.teacher, lengths, logits=False)
        gradients = _write_model(folder, pair, lengths, options.hidden)
        for length in lengths:
            names = [
                name
                for name in options.only
                if length == options.length or name in ("chunked", *ALONE)
            ]
            sizes = ",".join(str(size) for size in options.hidden)
            contenders = [
                Contender(
                    __file__,
                    ["--worker", name, str(folder), str(length), sizes, options.device],
                    Measurement(name, length, options.device),
                )
                for name in names
            ]
            # Exact dynamic scaling has no goal, and takes two passes: once, in the short form.
            few = {} if options.full else {"chunked_dynamic": 1}
            runs = options.runs if length == options.length else 0
            found = in_turns(contenders, runs, runs_of=few if runs else {})
            for m in found:
                gradient = gradients[length] / (2 if options.device == "cuda" else 1)
                m.extra["with_gradients_mib"] = m.memory_mib
                m.memory_mib = max(m.memory_mib - gradient, 0.0)
                if m.name.startswith("chunked") or m.name in ALONE:
                    megabytes = m.memory_mib * 2**20 / 1e6
                    rows.append(
                        judge(m.name, "MB", length, megabytes, at_most=MEMORY_MB, unit=" MB")
                    )
            measurements += found
    width = f"hidden {options.hidden[0]} (student) and {options.hidden[1]} (teacher)"
    return {
        "title": "Losses from hidden states (chunked head)",
        "what": f"{width}; memory beyond weights, hidden states and the gradients of both",
        "pair": pair,
        "machine": machine(options.device),
        "measurements": [m.plain() for m in measurements],
        "ratios": compare([m for m in measurements if m.length == options.length], RATIOS) + rows,
        "notes": _same_value(measurements),
    }


def _write_model(
    folder: Path, pair: dict[str, Any], lengths: list[int], hidden: tuple[int, int]
) -> dict[int, float]:
    """Write heads and hidden states; return the MiB of the student's gradients at each length."""
    gradients = {}
    for number, (side, size) in enumerate(zip(("student", "teacher"), hidden, strict=True)):
        rows = pair[f"{side}_vocabulary"]
        # Logits then have a standard deviation of two.
        write_random(folder / f"{side}-head-{size}", rows, size, 2.0 * size**-0.5, number)
        for length in lengths:
            case = Case.load(folder, length)
            count = len(case.student_ids if side == "student" else case.teacher_ids)
            write_random(folder / f"{side}-states-{size}-{length}", count, size, 1.0, 2 + number)
            if side == "student":
                gradients[length] = 4 * size * (rows + count) / 2**20
    return gradients


def _same_value(measurements: list[Measurement]) -> list[str]:
    found = {(m.name, m.length): m.value for m in measurements}
    notes = []
    for (name, length), value in found.items():
        whole = found.get((name.replace("chunked", "whole"), length))
        if "chunked" in name and value is not None and whole is not None:
            notes.append(f"T = {length}: {name} gives {value:.6g}, the whole form {whole:.6g}.")
    return notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common_options(parser, worker=5)
    parser.add_argument("--full", action="store_true", help="hidden 2048/2560, T = 512, 2048, 4096")
    parser.add_argument("--hidden", help="hidden sizes of student and teacher, e.g. 2048,2560")
    parser.add_argument("--length", type=int, help="student tokens of the timed runs")
    parser.add_argument("--memory-lengths", help="other lengths, run once for their memory")
    parser.add_argument("--only", help=f"contenders: {', '.join((*STANDARD, *ALONE))}")
    options = parser.parse_args()
    if options.worker:
        name, folder, length, sizes, device = options.worker
        case = Case.load(folder, int(length))
        student, teacher = (int(size) for size in sizes.split(","))
        serve(lambda: make_ready(name, case, (student, teacher), device), device)
        return
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden = options.hidden or ("2048,2560" if options.full else "1024,1280")
    options.hidden = tuple(int(size) for size in hidden.split(","))
    options.length = options.length or (2048 if options.full else 256)
    if options.memory_lengths is None:
        options.memory_lengths = "512,4096" if options.full else "1024"
    options.memory_lengths = [int(n) for n in options.memory_lengths.split(",") if n]
    options.only = contenders(options.only, STANDARD, (*STANDARD, *ALONE))
    result = measure(options)
    if options.json:
        write_json(options.json, result)
    show(result)


if __name__ == "__main__":
    main()
