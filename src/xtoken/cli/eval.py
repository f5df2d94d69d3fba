"""`xtoken eval`: bits per byte on a text, and how close a student is to a teacher."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xtoken.cli._app import app
from xtoken.cli._inputs import read_texts, vocabulary
from xtoken.cli._output import MODEL, Encoding, Json, doing, progress, show, show_json
from xtoken.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from xtoken.evaluation import EvaluationTable
    from xtoken.vocab import Vocabulary


class DtypeName(StrEnum):
    """Precision of the weights."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command(name="eval")
def eval_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)],
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="FILE",
            help="Held-out text: plain text, JSONL or parquet; - is standard input. May be "
            "repeated.",
            show_default=False,
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also compare with this model, chunk by chunk."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where MODEL's tokenizer is, if elsewhere.")
    ] = None,
    teacher_tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the teacher's tokenizer is.")
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(metavar="W", help="A projection of this pair, instead of a new one."),
    ] = None,
    by_class: Annotated[
        bool, typer.Option("--by-class", help="Also count by class of text (numerals, ...).")
    ] = False,
    max_length: Annotated[int, typer.Option(help="Tokens a window.", min=2)] = 1024,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens that windows advance by.", show_default="half a window"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.", min=1)] = 4,
    dtype: Annotated[DtypeName, typer.Option(help="Precision of the weights.")] = DtypeName.AUTO,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1.", show_default="a GPU, else the CPU")
    ] = None,
    encoding: Encoding = "utf-8",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure bits per byte on a text, and agreement with a teacher."""
    if teacher is None and (teacher_tokenizer or projection):
        given = "--teacher-tokenizer" if teacher_tokenizer else "--projection"
        raise UsageError(f"{given} has no effect without --teacher; add it, or leave this out.")
    texts = read_texts(text, encoding)
    loading = {"dtype": dtype.value, "device": _device(device)}
    names = [(model, tokenizer)] + ([] if teacher is None else [(teacher, teacher_tokenizer)])
    # Tokenizers first: what is wrong with them shows in seconds, before gigabytes are read.
    vocabs = [vocabulary(own or name, trust_remote_code=trust_remote_code) for name, own in names]
    models = [
        _load(name, vocab, trust_remote_code=trust_remote_code, **loading)
        for (name, _), vocab in zip(names, vocabs, strict=True)
    ]
    windows: dict[str, Any] = {"max_length": max_length, "stride": stride, "batch_size": batch_size}
    size = sum(len(item.encode()) for item in texts)
    result: dict[str, Any] = {"model": model, "teacher": teacher, "files": text, "bytes": size}
    if teacher is not None:
        result["comparison"] = _compare(models, vocabs, texts, size, projection, windows)
    if teacher is None or by_class:
        from xtoken.evaluation import bits_per_byte

        for side, loaded, vocab in zip(("student", "teacher"), models, vocabs, strict=False):
            with progress("Reading the text", size) as advance:
                measured = bits_per_byte(
                    loaded, vocab, texts, by_class=by_class, progress=advance, **windows
                )
            result.setdefault("bits_per_byte", {})[side] = measured.to_dict()
    if json:
        show_json(result)
        return
    from xtoken.report import render_table_before_after

    show(render_table_before_after(_table(result)))


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device is {name!r}, which this machine can't use: {reason}") from None
    return name


def _load(name: str, vocab: Vocabulary, **options: Any) -> PreTrainedModel:
    from xtoken.models import load_causal_lm, output_head_rows

    with doing(f"Loading {name}"):
        model = load_causal_lm(name, **options)
    vocab.with_rows(output_head_rows(model))  # refuses a tokenizer of another model
    return model


def _compare(
    models: list[Any],
    vocabs: list[Vocabulary],
    texts: list[str],
    size: int,
    projection: str | None,
    windows: dict[str, Any],
) -> dict[str, Any]:
    from xtoken.evaluation import compare
    from xtoken.projection import Projection

    given = None if projection is None else Projection.load(projection, *vocabs)
    with progress("Comparing on the text", size) as advance:
        found = compare(
            models[0], vocabs[0], models[1], vocabs[1], texts, given, progress=advance, **windows
        )
    return found.to_dict()


def _table(result: dict[str, Any]) -> EvaluationTable:
    from xtoken.evaluation import EvaluationTable

    columns: dict[str, dict[str, float]] = {}
    comparison = result.get("comparison")
    student = Path(result["model"]).name
    if student == "teacher":
        student = "student"
    names = {"student": student, "teacher": "teacher"}
    if comparison is not None:
        for side, name in names.items():
            columns[name] = {"bits_per_byte": comparison[side]["bits_per_byte"]}
        for metric in ("agreement", "kl_per_chunk", "kept_mass", "bytes_aligned", "chunks"):
            columns[student][metric] = comparison[metric]
    for side, measured in result.get("bits_per_byte", {}).items():
        values = columns.setdefault(names[side], {})
        values.setdefault("bits_per_byte", measured["bits_per_byte"])
        if comparison is None:
            values |= {metric: measured[metric] for metric in ("bytes", "tokens")}
        for key, part in measured.get("by_class", {}).items():
            values[f"bits_per_byte/{key}"] = part["bits_per_byte"]
    files = ", ".join(result["files"])
    note = "each token but a text's first; both models on the same bytes" if comparison else ""
    return EvaluationTable.from_columns(f"{files}: {result['bytes']:,} bytes", columns, note)
