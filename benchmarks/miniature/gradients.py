"""Where each loss pushes: gradients on numeral logits at the answers of sums, before training.

    .venv/bin/python -m benchmarks.miniature.gradients --size full --column teacher_splits

For the start of a column, at the chunk of the answer of sums from the training split with answers
of two or three digits: minus the loss's gradient, added up over all multi-digit numerals
(negative: pushed down), over those that begin with the answer's first digit, and on the answer's
own token; and the distance of GOLD's gradient from Proposition 1, p_S[j] * M_C(T).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from benchmarks.miniature.cells import ROWS, Row, loss_of
from benchmarks.miniature.columns import COLUMNS, Column, build_column, read_prose
from benchmarks.miniature.grid import write_json
from benchmarks.miniature.models import batches_of, rows_of
from benchmarks.miniature.problems import operand_pairs, sum_problem
from benchmarks.miniature.sizes import SIZES

from xtoken import encode_text
from xtoken.data import PairCollator
from xtoken.data.collate import chunks_from_batch
from xtoken.training.objective import student_inputs

PROBLEMS = 64


def answer_gradients(column: Column) -> dict[str, dict[str, float]]:
    """Return, for each loss, the mean over problems of minus the gradient (see the module)."""
    pairs = [pair for pair in operand_pairs("train") if sum(pair) >= 10][::97][:PROBLEMS]
    problems = [sum_problem(pair) for pair in pairs]
    rows = rows_of([p.prompt + p.completion for p in problems], column.student, [column.teacher])
    collate = PairCollator.of(column.student, [column.teacher])
    batch = next(batches_of(rows, len(problems), collate))
    with torch.no_grad():
        logits_BSV = column.start.eval()(**student_inputs(batch)).logits
        part = batch["teachers"][0]
        teacher_BTU = column.teacher_model.eval()(
            input_ids=part["input_ids"], attention_mask=part["attention_mask"]
        ).logits
    length = logits_BSV.shape[1]
    place_N = torch.tensor(
        [
            b * length + len(encode_text(column.student, p.prompt).ids) - 1
            for b, p in enumerate(problems)
        ]
    )
    chunks = chunks_from_batch(batch, 0)
    chunks = chunks.select(torch.isin(chunks.student_start_C, place_N))
    tokens = [column.student.token_bytes(i) for i in range(len(column.student))]
    several_V = torch.tensor([len(t) > 1 and t.isdigit() for t in tokens])
    gold_N = chunks.student_target_N[place_N]
    teacher_MU = teacher_BTU.flatten(0, 1)
    found: dict[str, dict[str, float]] = {}
    gradients: dict[str, torch.Tensor] = {}
    proposition = Row("gold", {**ROWS["gold"].settings, "lambda_uld": 0.0})
    for name, row in {**ROWS, "gold, KL part alone": proposition}.items():
        if row.kind is None or row.scaling == "fixed":
            continue
        logits_NV = logits_BSV.flatten(0, 1).clone().requires_grad_(True)
        loss_of(row, column)(logits_NV, teacher_MU, chunks).total.backward()
        assert logits_NV.grad is not None
        push_NV = -logits_NV.grad[place_N, : len(tokens)]
        gradients[name] = push_NV
        same_NV = torch.tensor(
            [
                [t.isdigit() and len(t) > 1 and t[:1] == tokens[g][:1] for t in tokens]
                for g in gold_N.tolist()
            ]
        )
        found[name] = {
            "all multi-digit numerals": float(push_NV[:, several_V].sum(-1).mean()),
            "same first digit": float((push_NV * same_NV).sum(-1).mean()),
            "the answer": float(push_NV.gather(1, gold_N[:, None]).mean()),
        }
    loss = loss_of(proposition, column)
    p_NV = logits_BSV.flatten(0, 1)[place_N, : len(tokens)].softmax(-1)
    rows_T = chunks.teacher_start_C
    common = teacher_MU[rows_T, : len(column.teacher)].softmax(-1)[:, loss.common_teacher_X].sum(-1)
    predicted_NV = -p_NV * common[:, None]
    gap_NV = (gradients["gold, KL part alone"] - predicted_NV)[:, loss.rest_student_X]
    found["proposition 1"] = {
        "largest difference": float(gap_NV.abs().max()),
        "largest gradient": float(predicted_NV[:, loss.rest_student_X].abs().max()),
        "teacher mass on common": float(common.mean()),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--column", choices=list(COLUMNS), default="teacher_splits")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/miniature"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    column = build_column(args.column, SIZES[args.size], Path(".cache/miniature"), read_prose())
    found = answer_gradients(column)
    write_json(args.output / f"gradients-{args.column}.json", found)
    for name, figures in found.items():
        print(name, {key: f"{value:+.2e}" for key, value in figures.items()})


if __name__ == "__main__":
    main()
