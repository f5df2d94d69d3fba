"""`xtoken train` refuses what can't work: one message, an exit code, nothing left behind."""

from pathlib import Path

import pytest

from cli_train import run_xtoken, write_run
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary


@pytest.fixture
def files(tiny_pair, tiny_text, tmp_path, monkeypatch):
    """A run file in the current directory, with paths relative to it."""
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path, tiny_pair, tiny_text)


def fails(code, *arguments):
    """Run, and check that it ends with one message and leaves nothing behind."""
    before = {path for path in Path().rglob("*") if path.is_file()}
    result = run_xtoken("train", "run.yaml", *arguments)
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert "Unexpected" not in result.stderr
    left = {path for path in Path().rglob("*") if path.is_file()} - before
    # What took time and is whole may stay: the projection is used again by the next try.
    assert {path.name for path in left} <= {"projection-0.safetensors"}
    return result.stderr


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("data.max_lenght=3", 2, "did you mean data.max_length?"),
        ("training.max_steps=ten", 2, "expected a whole number"),
        ("loss.kind", 2, "is not of the form key=value"),
        ("training.learning_rate=[1]", 2, "expected a number"),
        ("training.load_best_model_at_end=true", 2, "needs evaluation data"),
        ("student.model=./nowhere", 2, "There is no directory './nowhere'"),
        ("teachers.0.model=.", 2, "has no tokenizer"),
        ("teachers.0.tokenizer=./nowhere", 2, "There is no directory"),
        ("loss.kind=direct", 2, "teachers.0 (teacher) can't be used with loss.kind: direct"),
        ("data.train=nothing.jsonl", 2, "There is no file nothing.jsonl"),
        ("output_dir=run.yaml", 2, "is a file"),
        ("projection.path=nothing.safetensors", 2, "There is no projection file"),
    ],
)
def test_mistakes_in_the_run_file(files, override, code, says):
    assert says in fails(code, override)


def test_a_missing_run_file():
    result = run_xtoken("train", "nowhere.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: There is no run file nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b'{"text": "a b c"}\n{"text": \n', "line 2: broken JSON"),
        (b'{"text": "a b c"}\n{"txt": "d"}\n', "line 2: there is no column 'text'"),
        (b'{"txt": "a b c"}\n', "expected 'text' (documents)"),
        (b'{"text": "a b c"}\n{"text": "caf\xe9"}\n', "byte 0xe9 at offset"),
        (b'{"text": ""}\n', "Nothing in the data can be trained on"),
        (b'{"prompt": "' + b"why " * 99 + b'", "completion": "so"}\n', "Nothing in the data"),
    ],
)
def test_data_files_that_can_not_be_used(files, content, says):
    Path("train.jsonl").write_bytes(content)
    assert says in fails(1)


def test_projections_that_can_not_be_used(files, tiny_pair):
    student, teacher = (Vocabulary.from_pretrained(folder) for folder in tiny_pair)
    Projection.build(teacher, student).save("swapped.safetensors")
    assert "was built for the student tokenizer" in fails(1, "projection.path=swapped.safetensors")
    Projection.build(student, teacher).save("torn.safetensors")
    torn = Path("torn.safetensors")
    torn.write_bytes(torn.read_bytes()[:-100])
    assert "truncated" in fails(1, "projection.path=torn.safetensors")
