"""`xtoken eval`: text, tasks and samples; one model, or a run's student before, after, teacher."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xtoken.cli._app import app
from xtoken.cli._inputs import read_texts
from xtoken.cli._lineup import Contestant, Lineup, is_run, run_lineup
from xtoken.cli._measuring import Measuring
from xtoken.cli._output import MODEL, Encoding, Json, say, show, show_json
from xtoken.errors import UsageError

if TYPE_CHECKING:
    from xtoken.evaluation.tasks import Tasks


class DtypeName(StrEnum):
    """Precision of the weights."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command(name="eval")
def eval_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODEL} A run folder: its student before and after, and its teachers.",
            show_default=False,
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Held-out text: plain text, JSONL or parquet; - is standard input. May be "
            "repeated.",
            show_default="a run's evaluation data",
        ),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also the model that MODEL was before (of a run: instead of its own).",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also this model; on text, compared chunk by chunk (of a run: instead of its "
            "own).",
        ),
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
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Tasks of lm-evaluation-harness: piqa,gsm8k,mmlu_*"),
    ] = None,
    task_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A local file for a built-in task; NAME:train=FILE for few-shot examples. May be "
            "repeated.",
            show_default="the hub",
        ),
    ] = None,
    tasks_data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of such files: NAME.jsonl, NAME_train.jsonl."),
    ] = None,
    include_path: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A folder of own task files (YAML).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Examples a task, at most.", min=1)] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(help="Examples before a question.", min=0, show_default="the task's own"),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Let the models go on from N texts' beginnings.", min=0)
    ] = 0,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts instead: a line each, or JSONL.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a sample, at most.", min=1)] = 48,
    temperature: Annotated[
        float, typer.Option(help="0: the likeliest token; else samples are drawn.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of drawn samples and few-shot examples.")] = 1234,
    max_length: Annotated[int, typer.Option(help="Tokens a window.", min=2)] = 1024,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens that windows advance by.", show_default="half a window"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows or requests at a time.", min=1)] = 4,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(
            help="Precision of the weights.",
            show_default="the run file's, else the checkpoint's",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1.", show_default="a GPU, else the CPU")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results go.", show_default="the run folder"),
    ] = None,
    encoding: Encoding = "utf-8",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure text, tasks and samples: of a model, or of a run before and after, and its teacher.

    Results of a run are written beside it (evaluation.json, lm_eval/, samples.json), where
    `xtoken report` finds them.
    """
    if teacher is None and teacher_tokenizer:
        raise UsageError("--teacher-tokenizer has no effect without --teacher; add it.")
    first, other = (
        None if given is None else Contestant(column, given, own, None, trust_remote_code)
        for column, given, own in (
            ("before", before, None),
            ("teacher", teacher, teacher_tokenizer),
        )
    )
    if is_run(model):
        if tokenizer is not None:
            raise UsageError(f"{model} is a run, which has its tokenizer; leave --tokenizer out.")
        lineup = run_lineup(
            model, output, before=first, teacher=other, trust_remote_code=trust_remote_code
        )
    else:
        column = "student" if before is None else "after"
        student = Contestant(column, model, tokenizer, None, trust_remote_code)
        lineup = Lineup(
            [student] if first is None else [first, student],
            [] if other is None else [other],
            output,
        )
    if projection is not None and not lineup.teachers:
        raise UsageError("--projection has no effect without --teacher; add it, or leave this out.")
    if projection is not None and len(lineup.teachers) > 1:
        raise UsageError("--projection is of one pair, but the run has several teachers.")
    files = list(text or ([] if tasks else lineup.texts))
    wants_samples = samples > 0 or prompts is not None
    if not (files or tasks or wants_samples):
        raise UsageError("Nothing to measure; give --text FILE, --tasks NAMES or --prompts FILE.")
    if (task_data or tasks_data or include_path) and not tasks:
        raise UsageError("Data for tasks has no effect without --tasks; name the tasks.")
    texts = read_texts(files, encoding) if files else []
    asked = _prompts(lineup, texts, samples, prompts, encoding) if wants_samples else []
    measuring = Measuring(
        lineup,
        files,
        texts,
        _tasks(tasks, task_data or [], tasks_data, include_path or []) if tasks else None,
        asked,
        by_class=by_class,
        projection=projection,
        loading={"device": _device(device)} | ({} if dtype is None else {"dtype": dtype.value}),
        windows={"max_length": max_length, "stride": stride, "batch_size": batch_size},
        tasks_options={
            "limit": limit,
            "num_fewshot": num_fewshot,
            "batch_size": batch_size,
            "seed": seed,
        },
        sampling={"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed},
    )
    result = measuring.run()
    written = measuring.write()
    if json:
        show_json(result | {"written": [str(path) for path in written]})
        return
    show(*measuring.shown())
    for path in written:
        say(f"Written: {path}")


def _tasks(names: str, files: list[str], folder: Path | None, include_path: list[Path]) -> Tasks:
    from xtoken.evaluation.task_data import find_task_data, parse_task_data
    from xtoken.evaluation.tasks import find_tasks, require_lm_eval

    require_lm_eval()
    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        raise UsageError(f"--tasks is {names!r}; expected names such as piqa,gsm8k.")
    data = {} if folder is None else find_task_data(folder, listed)
    return find_tasks(listed, data | parse_task_data(files), include_path)


def _prompts(
    lineup: Lineup, texts: list[str], count: int, file: Path | None, encoding: str
) -> list[str]:
    """Return the prompts: a file's lines or rows, or the beginnings of the evaluation text."""
    from xtoken.evaluation.samples import first_prompts

    if file is None:
        if not texts:
            if not lineup.texts:
                raise UsageError("--samples needs --text (or --prompts FILE) to begin from.")
            texts = read_texts(lineup.texts, encoding)
        return first_prompts(texts, count)
    found = read_texts([str(file)], encoding)
    lines = found if file.suffix != ".txt" else [x for x in found[0].splitlines() if x.strip()]
    return lines[:count] if count else lines


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
