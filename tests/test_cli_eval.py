"""`xtoken eval` on tiny models."""

import json
import math
import shutil
import weakref
from types import SimpleNamespace

import pytest
import yaml

from cli_calls import fails, ok
from xtoken.evaluation import bits_per_byte, compare
from xtoken.models import load_causal_lm
from xtoken.projection import Projection
from xtoken.vocab import Vocabulary


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tiny_text):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text.txt").write_text("\n".join(tiny_text), encoding="utf-8")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in tiny_text)
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    (folder / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": text} for text in tiny_text]})
    )
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_pair):
    return [(load_causal_lm(folder), Vocabulary.from_pretrained(folder)) for folder in tiny_pair]


def test_bits_per_byte_are_the_librarys(tiny_pair, loaded, texts):
    out = json.loads(ok("eval", tiny_pair[0], "--text", texts / "text.txt", "--json"))
    text = (texts / "text.txt").read_text(encoding="utf-8")
    expected = bits_per_byte(*loaded[0], text).bpb
    assert math.isclose(out["bits_per_byte"]["student"]["bits_per_byte"], expected, rel_tol=1e-5)
    assert out["bytes"] == len(text.encode())
    shown = ok("eval", tiny_pair[0], "--text", texts / "text.txt")
    assert f"{expected:.3f}" in shown
    assert "bits per byte" in shown


def test_rows_are_documents_and_windows_change_little(tiny_pair, loaded, texts, tiny_text):
    out = json.loads(ok("eval", tiny_pair[0], "--text", texts / "rows.jsonl", "--json"))
    measured = out["bits_per_byte"]["student"]
    assert measured["documents"] == len(tiny_text)
    assert math.isclose(
        measured["bits_per_byte"], bits_per_byte(*loaded[0], tiny_text).bpb, rel_tol=1e-5
    )
    chats = json.loads(ok("eval", tiny_pair[0], "--text", texts / "chats.jsonl", "--json"))
    assert chats["bits_per_byte"] == out["bits_per_byte"]
    short = ("--max-length", 8, "--stride", 3, "--batch-size", 2)
    out = json.loads(ok("eval", tiny_pair[0], "--text", texts / "rows.jsonl", "--json", *short))
    assert out["bits_per_byte"]["student"]["tokens"] == measured["tokens"]


def test_comparison_with_a_teacher(tiny_pair, loaded, texts, tmp_path):
    path = tmp_path / "W.safetensors"
    vocabs = [vocab for _, vocab in loaded]
    Projection.build(*vocabs).save(path)
    command = ("eval", tiny_pair[0], "--text", texts / "text.txt", "--teacher", tiny_pair[1])
    out = json.loads(ok(*command, "--projection", path, "--by-class", "--json"))
    text = (texts / "text.txt").read_text(encoding="utf-8")
    expected = compare(*loaded[0], *loaded[1], text)
    assert math.isclose(
        out["comparison"]["teacher"]["student"]["kl_per_chunk"], expected.kl_per_chunk, rel_tol=1e-4
    )
    assert out["comparison"]["teacher"]["student"]["chunks"] == expected.chunks
    assert "numeral_3" in out["bits_per_byte"]["teacher"]["by_class"]
    shown = ok(*command)
    assert "agreement with the teacher" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_model_agrees_with_itself(tiny_pair, texts):
    command = ("eval", tiny_pair[0], "--text", texts / "text.txt", "--teacher", tiny_pair[0])
    out = json.loads(ok(*command, "--json"))["comparison"]["teacher"]["student"]
    assert out["agreement"] == 1.0
    assert abs(out["kl_per_chunk"]) < 1e-5


def test_bad_input(tiny_pair, texts, tmp_path):
    student, text = tiny_pair[0], texts / "text.txt"
    assert "Nothing to measure" in fails(2, "eval", student)
    assert "There is no directory" in fails(2, "eval", "./nowhere", "--text", text)
    assert "There is no file" in fails(2, "eval", student, "--text", texts / "none")
    assert "no effect without --teacher" in fails(
        2, "eval", student, "--text", text, "--projection", "w"
    )
    assert "can't use" in fails(2, "eval", student, "--text", text, "--device", "abacus")
    assert "stride" in fails(1, "eval", student, "--text", text, "--stride", 9999)
    assert "output head" in fails(1, "eval", tiny_pair[1], "--tokenizer", student, "--text", text)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "line 2: broken JSON" in fails(1, "eval", student, "--text", tmp_path / "broken.jsonl")
    torn = tmp_path / "torn"
    shutil.copytree(student, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "truncated or damaged" in fails(1, "eval", torn, "--text", text)
    (tmp_path / "one.txt").write_text("a")
    assert "No token could be scored" in fails(1, "eval", student, "--text", tmp_path / "one.txt")


# ---- tasks, samples, runs ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """A task file of one's own and its rows."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"query": f"{a} + 1 =", "choices": [str(a), str(a + 1)], "gold": 1} for a in range(6)]
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(
        "task: tiny_sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {data}\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: query\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return folder


@pytest.fixture
def finished_run(tmp_path, tiny_pair, texts):
    folder = tmp_path / "run"
    shutil.copytree(tiny_pair[0], folder)
    (folder / "run.yaml").write_text(
        f"student: {{model: {tiny_pair[0]}}}\nteachers: [{{model: {tiny_pair[1]}}}]\n"
        f"data: {{train: {texts / 'rows.jsonl'}, eval: {texts / 'rows.jsonl'}}}\n"
        f"output_dir: {folder}\n"
    )
    return folder


def test_a_run_is_measured_before_after_and_its_teacher(finished_run, task_folder):
    pytest.importorskip("lm_eval")
    from xtoken.report import load_run

    command = ("eval", finished_run, "--tasks", "tiny_sums", "--include-path", task_folder)
    out = json.loads(ok(*command, "--limit", 4, "--samples", 2, "--json"))
    assert list(out["tasks"]) == ["before", "after", "teacher"]
    assert out["tasks"]["before"] == out["tasks"]["after"]
    loaded = load_run(finished_run)
    table = next(t for t in loaded.evaluation if t.name.startswith("tasks"))
    assert table.columns == ("before", "after", "teacher")
    row = table.row("tiny_sums acc")
    assert (row.better, row.unit) == ("higher", "%")
    assert "4 of 6 examples" in table.note
    assert len(loaded.samples) == 2
    assert list(loaded.samples[0].outputs) == ["before", "after", "teacher"]
    assert loaded.samples[0].outputs["before"] == loaded.samples[0].outputs["after"]


def test_a_run_is_measured_on_its_evaluation_data(finished_run):
    from xtoken.report import load_run

    shown = ok("eval", finished_run, "--by-class")
    assert "agreement with the teacher" in shown
    ok("eval", finished_run)  # the same table again: replaced, not repeated
    (table,) = load_run(finished_run).evaluation
    assert table.columns == ("before", "after", "teacher")
    values = table.row("bits_per_byte").values
    assert values["before"] == values["after"]


@pytest.fixture
def loads(monkeypatch):
    """What reaches the loader: (name, options); and how many models were alive at each load."""
    seen, alive, counts = [], weakref.WeakSet(), []

    def load(name, **options):
        seen.append((name, dict(options)))
        counts.append(len(alive))
        # The options themselves need packages and machines that a test can't count on.
        model = load_causal_lm(name)
        alive.add(model)
        return model

    monkeypatch.setattr("xtoken.models.load_causal_lm", load)
    return SimpleNamespace(seen=seen, counts=counts)


def test_models_of_a_run_are_loaded_as_its_file_says(finished_run, tiny_pair, task_folder, loads):
    pytest.importorskip("lm_eval")
    run = yaml.safe_load((finished_run / "run.yaml").read_text())
    run["student"] |= {"dtype": "bfloat16", "quantization": "4bit", "lora": {}}
    run["student"] |= {"revision": "a", "attn_implementation": "eager"}
    run["teachers"][0] |= {"quantization": "8bit", "trust_remote_code": True, "revision": "b"}
    (finished_run / "run.yaml").write_text(yaml.safe_dump(run))
    command = ("eval", finished_run, "--tasks", "tiny_sums", "--include-path", task_folder)
    command = (*command, "--limit", 1, "--device", "cpu")
    ok(*command)
    student = {"dtype": "bfloat16", "quantization": "4bit", "attn_implementation": "eager"}
    teacher = {"dtype": "auto", "quantization": "8bit", "attn_implementation": None}
    common = {"device": "cpu", "trust_remote_code": False}
    assert loads.seen == [
        (str(tiny_pair[0]), common | student | {"revision": "a"}),
        (str(finished_run), common | student | {"revision": None}),
        (str(tiny_pair[1]), common | teacher | {"revision": "b", "trust_remote_code": True}),
    ]
    loads.seen.clear()
    ok(*command, "--dtype", "float32", "--trust-remote-code", "--teacher", tiny_pair[1])
    assert [options["dtype"] for _, options in loads.seen] == ["float32"] * 3
    assert all(options["trust_remote_code"] for _, options in loads.seen)
    assert "quantization" not in loads.seen[2][1], "another teacher isn't what the file speaks of"


def test_one_teacher_is_in_memory_at_a_time(finished_run, tiny_pair, loads, tmp_path):
    run = yaml.safe_load((finished_run / "run.yaml").read_text())
    folders = [shutil.copytree(tiny_pair[1], tmp_path / name) for name in "abc"]
    run["teachers"] = [{"model": str(folder)} for folder in folders]
    (finished_run / "run.yaml").write_text(yaml.safe_dump(run))
    out = json.loads(ok("eval", finished_run, "--by-class", "--json"))
    assert list(out["comparison"]) == ["teacher a", "teacher b", "teacher c"]
    assert all(list(found) == ["before", "after"] for found in out["comparison"].values())
    assert list(out["bits_per_byte"]) == ["before", "after", *out["comparison"]]
    assert max(loads.counts) == 1, "a student or a teacher stays, the other is let go of first"
    names = [name for name, _ in loads.seen]
    assert [names.count(str(folder)) for folder in folders] == [1, 1, 1]


def test_before_after_and_teacher_by_name(tiny_pair, texts, tmp_path):
    student, teacher = tiny_pair
    command = ("eval", student, "--before", student, "--teacher", teacher, "--output", tmp_path)
    ok(*command, "--text", texts / "text.txt", "--samples", 1, "--temperature", 1)
    assert (tmp_path / "evaluation.json").exists()
    (sample,) = json.loads((tmp_path / "samples.json").read_text())
    assert sample["outputs"]["before"] == sample["outputs"]["after"]
    assert sample["prompt"]


def test_prompts_from_a_file(tiny_pair, tmp_path):
    (tmp_path / "prompts.txt").write_text("The quick\n\nIn 1984\n")
    command = ("eval", tiny_pair[0], "--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 5)
    out = json.loads(ok(*command, "--json"))
    assert [s["prompt"] for s in out["samples"]] == ["The quick", "In 1984"]
    assert "The quick" in ok(*command)


def test_built_in_task_on_a_local_file(tiny_pair, tmp_path, task_folder):
    pytest.importorskip("lm_eval")
    plain = task_folder / "sums.jsonl"
    command = ("eval", tiny_pair[0], "--tasks", "piqa")
    out = json.loads(ok(*command, "--task-data", f"piqa={plain}", "--json"))
    assert set(out["tasks"]["student"]) == {"piqa acc", "piqa acc_norm"}
    (tmp_path / "gsm8k_test.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(7))
    )
    # GSM8K asks for 256 new tokens, which is all that the tiny model was made for.
    roomy = tmp_path / "roomy"
    shutil.copytree(tiny_pair[0], roomy)
    config = json.loads((roomy / "config.json").read_text())
    (roomy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    folder = ("eval", roomy, "--tasks", "gsm8k", "--tasks-data", tmp_path)
    out = json.loads(ok(*folder, "--num-fewshot", 1, "--limit", 1, "--json"))
    assert out["tasks"]["student"]["gsm8k exact_match (strict-match)"] == 0.0
    (tmp_path / "winogrande.jsonl").write_text(
        '{"context_options": ["A so A", "A so B"], "continuation": "won.", "gold": 1}\n' * 2
    )
    (tmp_path / "lambada_openai.jsonl").write_text('{"context": "a b", "continuation": "c"}\n' * 2)
    both = ("eval", roomy, "--tasks", "winogrande,lambada_openai", "--tasks-data", tmp_path)
    found = json.loads(ok(*both, "--json"))["tasks"]["student"]
    assert set(found) == {
        "winogrande acc",
        "lambada_openai acc",
        "lambada_openai perplexity",
    }
    # ---- what is wrong with names and files
    assert "Did you mean" in fails(2, "eval", tiny_pair[0], "--tasks", "pika")
    assert "--task-data piqa=FILE" in fails(1, *command)
    assert "no file" in fails(2, *command, "--task-data", "piqa=nowhere.jsonl")
    assert "expected NAME=FILE" in fails(2, *command, "--task-data", "piqa")
    assert "doesn't name" in fails(2, *command, "--task-data", f"gsm8k={plain}")
    assert "no folder" in fails(2, *command, "--tasks-data", tmp_path / "none")
    assert "group of tasks" in fails(
        2, "eval", tiny_pair[0], "--tasks", "mmlu", "--task-data", f"mmlu={plain}"
    )
    (tmp_path / "broken.jsonl").write_text('{"goal": "a"}\n{"goal": \n')
    broken = f"piqa={tmp_path / 'broken.jsonl'}"
    assert "line 2: broken JSON" in fails(1, *command, "--task-data", broken)
    (tmp_path / "other.jsonl").write_text('{"goal": "a"}\n')
    other = f"piqa={tmp_path / 'other.jsonl'}"
    assert "reads goal, label, sol1, sol2" in fails(1, *command, "--task-data", other)


def test_lm_eval_missing_says_how_to_install_it(tiny_pair, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in fails(2, "eval", tiny_pair[0], "--tasks", "piqa")


def test_runs_that_cannot_be_measured(finished_run, tmp_path, texts):
    assert "has its tokenizer" in fails(2, "eval", finished_run, "--tokenizer", "x")
    (finished_run / "config.json").unlink()
    assert "no finished student" in fails(2, "eval", finished_run)
    (finished_run / "checkpoint-5").mkdir()
    assert "checkpoint-5" in fails(2, "eval", finished_run)
    (finished_run / "run.yaml").write_text("student: [")
    assert "run.yaml" in fails(2, "eval", finished_run)
    (tmp_path / "empty").mkdir()
    assert "has no tokenizer" in fails(2, "eval", tmp_path / "empty", "--text", texts / "text.txt")
