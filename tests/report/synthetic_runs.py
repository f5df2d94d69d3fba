"""Run folders made up for tests of the report (and for looking at it)."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from xtoken.evaluation import EvaluationTable, save_evaluation

RUN_YAML = """\
student:
  model: models/{student}
  dtype: bfloat16
teachers:
- model: HuggingFaceTB/SmolLM2-135M-Instruct
  weight: 1.0
data:
  train: data/wikipedia.jsonl
  max_length: 512
projection: {{max_pieces: 4, beta: 0.9, gamma: 0.1}}
loss: {{kind: {loss}, pooling: first, support: full, temperature: 1.0}}
combine: {{kd: 1.0, ce: 1.0, scaling: {scaling}}}
training: {{learning_rate: 0.0005, max_steps: {steps}, per_device_train_batch_size: 8}}
output_dir: runs/{name}
seed: {seed}
"""


def metrics_lines(steps: int, *, seed: int = 0, every: int = 1, kd: float = 2.2) -> list[dict]:
    rng = random.Random(seed)
    lines: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        done = step / steps
        ce = 3.1 + 4.6 * math.exp(-6 * done) + rng.gauss(0, 0.12)
        part = kd * (0.45 + 0.9 * math.exp(-5 * done)) + rng.gauss(0, 0.07)
        teacher = 0.35 + rng.gauss(0, 0.01)
        line = {
            "step": step,
            "epoch": done,
            "loss": 2 * ce,
            "ce": ce,
            "kd": part,
            "kd/smollm2": part,
            "scale": ce / part,
            "chunks": 2900 + rng.gauss(0, 120),
            "bytes_aligned": 0.9991 + rng.random() * 0.0006,
            "one_to_one": 0.79 + rng.gauss(0, 0.012),
            "kept_mass": 0.962 + rng.gauss(0, 0.004),
            "agreement": 0.44 - 0.31 * math.exp(-5 * done) + rng.gauss(0, 0.012),
            "bpb": ce / 2.62,
            "teacher_bpb": 1.11 + rng.gauss(0, 0.03),
            "grad_norm": (55 if step == every else 0)
            + 0.8
            + 2.4 * math.exp(-9 * done)
            + abs(rng.gauss(0, 0.18)),
            "learning_rate": 5e-4 * min(done * 10, 0.5 * (1 + math.cos(math.pi * done))),
            "tokens_per_second": 4100 + rng.gauss(0, 140),
            "time_step": 1.04 + rng.gauss(0, 0.03),
            "time_data": 0.012,
            "time_teacher": teacher,
            "time_student": 0.49 + rng.gauss(0, 0.01),
            "time_loss": 0.12 + rng.gauss(0, 0.004),
            "time_figures": 0.03,
            "time_other": 0.05,
            "memory_gib": 2.31 + 0.02 * done,
        }
        lines.append(line)
        if step % max(steps // 8 // every * every, every) == 0:
            lines.append(
                {
                    "step": step,
                    "eval_loss": 2 * ce + 0.2,
                    "eval_ce": ce + 0.05,
                    "eval_kd": part + 0.04,
                    "eval_bpb": ce / 2.6,
                    "eval_agreement": line["agreement"] - 0.01,
                    "eval_runtime": 3.1,
                }
            )
    return lines


def audit_dict() -> dict[str, Any]:
    def side(name: str, size: int) -> dict[str, Any]:
        return {
            "name": name,
            "size": size,
            "rows": size + 64,
            "padded_rows": 64,
            "missing_ids": 0,
            "special_tokens": 17,
            "distinct_bytes": size - 17,
            "fingerprint": "ab" * 32,
            "lossy": False,
            "normalizes": False,
            "notes": [],
            "has_chat_template": False,
        }

    def row(
        key: str,
        title: str,
        student: tuple[int, int],
        teacher: tuple[int, int],
        used: int,
        examples: list[str],
        critical: bool = False,
    ) -> dict[str, Any]:
        matched = student[0] == student[1]
        return {
            "key": key,
            "title": title,
            "critical": critical,
            "student_ids": student[0],
            "student_exact": student[1],
            "teacher_ids": teacher[0],
            "teacher_exact": teacher[1],
            "student_text_tokens": used,
            "student_text_exact": used * student[1] // max(student[0], 1),
            "teacher_text_tokens": used,
            "teacher_text_exact": used,
            "unmatched_examples": examples,
            "effects": {
                "gold": "matched id for id" if matched else "compared by rank only",
                "p_kl": "matched id for id"
                if matched
                else "mass goes to the teacher's pieces, mostly the first",
            },
        }

    return {
        "student": side("models/gpt2-mini", 50257),
        "teacher": side("HuggingFaceTB/SmolLM2-135M-Instruct", 49152),
        "same_tokenizer": False,
        "verdict": {
            "loss": "p_kl",
            "deciding_class": "numeral_3",
            "side": "student",
            "reason": "963 of the student's 963 3-digit numerals have no exact partner in the "
            "teacher: a loss that splits the vocabulary would suppress them.",
        },
        "overlap": {
            "shared": 30121,
            "student_share": 0.599,
            "teacher_share": 0.613,
            "smaller_share": 0.613,
        },
        "coverage": {"exact": 30121, "multi_token": 20119, "empty": 0, "role": 1},
        "classes": [
            row("numeral_1", "1-digit numerals (ASCII)", (10, 10), (10, 10), 812, [], True),
            row(
                "numeral_2", "2-digit numerals (ASCII)", (100, 0), (0, 0), 2203, ["10", "20"], True
            ),
            row(
                "numeral_3",
                "3-digit numerals (ASCII)",
                (963, 0),
                (0, 0),
                1107,
                ["100", "200", "201", "000", "365"],
                True,
            ),
            row(
                "punctuation",
                "ASCII punctuation, one character",
                (32, 32),
                (32, 32),
                21011,
                [],
                True,
            ),
            row("whitespace", "whitespace runs", (82, 31), (40, 31), 5110, ["\n\n\n", "         "]),
            row(
                "code",
                "code: operators, identifier parts",
                (3120, 1511),
                (2210, 1511),
                911,
                ["();"],
            ),
            row(
                "letters_latin",
                "letters: Latin",
                (44950, 28011),
                (44100, 28011),
                171203,
                [" unfocusedRange", " externalToEVAOnly", " guiActiveUn"],
            ),
            row("letters_arabic", "letters: Arabic", (21, 20), (33, 20), 4, ["ال"]),
            row(
                "symbol",
                "other punctuation, symbols, emoji, control",
                (88, 70),
                (99, 70),
                41,
                ["👍"],
            ),
            row("byte_fragment", "byte fragments (no valid UTF-8)", (890, 410), (570, 410), 77, []),
        ],
        "other_digits": {"²": True, "³": True, "٣": False},
        "string_matching": {"1-digit": [13, 13]},
        "roles": [
            {
                "role": "eos",
                "student_id": 50256,
                "student_text": "<|endoftext|>",
                "teacher_id": 2,
                "teacher_text": "<|im_end|>",
                "paired": True,
            },
            {
                "role": "bos",
                "student_id": None,
                "student_text": None,
                "teacher_id": 1,
                "teacher_text": "<|im_start|>",
                "paired": False,
            },
        ],
        "marks": [],
        "warnings": [
            {
                "code": "one_chat_template",
                "message": "Only the teacher has a chat template; for messages give the other one "
                "or train on prompts and completions.",
            }
        ],
        "text": {
            "documents": 120,
            "bytes": 812_331,
            "total_bytes": 7_300_122,
            "sampled": True,
            "student_tokens": 184_000,
            "teacher_tokens": 191_000,
            "student_tokens_per_byte": 0.2265,
            "teacher_tokens_per_byte": 0.2351,
            "exact_share": 0.912,
            "teacher_exact_share": 0.934,
            "byte_coverage": 1.0,
            "chunks": {"1:1": 141_220, "1:N": 20_110, "N:1": 9_377, "M:N": 4_001},
            "one_to_one_share": 0.808,
            "student_encodes_exactly": True,
            "teacher_encodes_exactly": True,
            "frequent_inexact": [
                {
                    "student_id": 679,
                    "text": " 2019",
                    "count": 331,
                    "share": 0.0018,
                    "class_key": "numeral_spaced",
                    "kind": "multi-token",
                    "pieces": [[" ", 0.9009], ["2", 0.0901], ["0", 0.009]],
                },
                {
                    "student_id": 680,
                    "text": " episode",
                    "count": 290,
                    "share": 0.0016,
                    "class_key": "letters_latin",
                    "kind": "multi-token",
                    "pieces": [[" ep", 0.909], ["isode", 0.091]],
                },
            ],
        },
        "version": 1,
    }


def alignment_dict() -> dict[str, Any]:
    def block(kind: str | None, student: list[str], teacher: list[str]) -> dict[str, Any]:
        return {"kind": kind, "role": False, "student": student, "teacher": teacher}

    return {
        "teacher": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "documents": 2400,
        "student_tokens": 1_201_334,
        "teacher_tokens": 1_255_120,
        "byte_coverage": 0.9996,
        "one_to_one_share": 0.792,
        "supervised_chunks": 1_008_221,
        "chunks": {"1:1": 798_000, "1:N": 130_221, "N:1": 60_000, "M:N": 20_000},
        "examples": [
            {
                "blocks": [
                    block("1:1", ["The"], ["The"]),
                    block("1:1", ["·year"], ["·year"]),
                    block("1:N", ["·2019"], ["·", "2", "0", "1", "9"]),
                    block("1:1", ["·was"], ["·was"]),
                    block("N:1", ["·extra", "ordinary"], ["·extraordinary"]),
                    block("M:N", ["·pal", "imps", "est"], ["·palim", "psest"]),
                    block(None, ["<C3>"], []),
                    block("1:1", ["·狐狸"], ["·狐狸"]),
                    block("1:1", ["·مرحبا"], ["·مرحبا"]),
                    block("1:1", [".⏎"], [".⏎"]),
                ]
            }
        ],
    }


def tables(*, after: float = 1.604, baseline: bool = True) -> list[EvaluationTable]:
    columns = {
        "before": {"bits_per_byte": 2.913, "agreement": 0.112, "kl_per_chunk": 4.91},
        "after": {"bits_per_byte": after, "agreement": 0.431, "kl_per_chunk": 1.77},
        "teacher": {"bits_per_byte": 1.106},
    }
    if baseline:
        columns["cross_entropy_only"] = {
            "bits_per_byte": 1.668,
            "agreement": 0.397,
            "kl_per_chunk": 2.21,
        }
        columns["teacher"] = columns.pop("teacher")
    parts = {
        name: {
            f"bits_per_byte/{part}": value * factor
            for part, factor in (("numerals", 1.9), ("Latin letters", 0.97), ("punctuation", 0.8))
        }
        for name, value in (("before", 2.913), ("after", after), ("teacher", 1.106))
    }
    return [
        EvaluationTable.from_columns(
            "held-out text", columns, "Wikipedia, 210 documents, 412,003 bytes."
        ),
        EvaluationTable.from_columns("held-out text, by kind of text", parts),
    ]


def make_run(
    folder: Path,
    *,
    name: str = "gpt2-mini-p_kl",
    steps: int = 400,
    every: int = 1,
    loss: str = "p_kl",
    seed: int = 0,
    student: str = "gpt2-mini",
    after: float = 1.604,
) -> Path:
    """Write a run folder that looks like a real one and return it."""
    run = folder / name
    run.mkdir(parents=True)
    settings = {"loss": loss, "steps": steps, "name": name, "seed": seed, "student": student}
    (run / "run.yaml").write_text(RUN_YAML.format(scaling="dynamic", **settings))
    lines = metrics_lines(steps, seed=seed, every=every, kd=2.2 if loss == "p_kl" else 1.4)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "audit.json").write_text(json.dumps(audit_dict()))
    (run / "alignment.json").write_text(json.dumps(alignment_dict()))
    save_evaluation(run, tables(after=after))
    samples = [
        {
            "prompt": "The history of the town begins in",
            "outputs": {
                "before": " the the of of the and the in",
                "after": " the 12th century, when it was first mentioned in a charter of 1184.",
                "teacher": " the late 19th century, when the first settlers arrived from Ohio.",
            },
        },
        {
            "prompt": "1, 2, 3, 4,",
            "outputs": {"before": " 19 19 19", "after": " 5, 6, 7, 8", "teacher": " 5, 6, 7, 8, 9"},
        },
    ]
    (run / "samples.json").write_text(json.dumps(samples))
    environment = {
        "xtoken": "0.1.0",
        "python": "3.11.9",
        "torch": "2.13.0+cpu",
        "transformers": "5.23.0",
        "device": "CPU, 2 cores",
    }
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "summary.json").write_text(json.dumps({"seconds": 421.3, "status": "finished"}))
    return run
