from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from synthetic_runs import audit_dict, make_run

from xtoken.errors import UsageError
from xtoken.report import load_run
from xtoken.report.run_data import differences, flatten, short_name


def metrics(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_whole_run(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, steps=60))
    assert run.steps == 60
    assert run.student == "gpt2-mini"
    assert run.teachers == ["SmolLM2-135M-Instruct"]
    assert run.loss_kind == "p_kl"
    assert len(run.metrics["ce"]) == 60
    assert 0 < len(run.metrics["eval_ce"]) < 20
    assert run.audits == [audit_dict()]
    assert run.alignments[0]["one_to_one_share"] == 0.792
    assert run.evaluation[0].name == "held-out text"
    assert run.samples[1].outputs["after"] == " 5, 6, 7, 8"
    assert run.notes == []


def test_half_written_last_line_is_no_damage(tmp_path: Path) -> None:
    run = load_run(metrics(tmp_path, '{"step": 1, "ce": 2.0}\n{"step": 2, "ce": 1.'))
    assert run.metrics["ce"].values == (2.0,)
    assert run.notes == ["run.yaml is missing: the settings are not known."]


def test_broken_lines_are_named(tmp_path: Path) -> None:
    text = '{"step": 1, "ce": 2}\noops\n{"ce": 3}\n[1]\n{"step": 2, "ce": 1}\n'
    run = load_run(metrics(tmp_path, text))
    assert run.metrics["ce"].values == (2.0, 1.0)
    assert "metrics.jsonl: line 2, 3, 4 is not readable and was left out." in run.notes


def test_values_that_are_not_finite_are_kept_and_named(tmp_path: Path) -> None:
    lines = ['{"step": 1, "kd": 1.5}', '{"step": 2, "kd": NaN}', '{"step": 3, "kd": null}']
    lines += ['{"step": 4, "kd": "Infinity", "name": "text", "flag": true}']
    run = load_run(metrics(tmp_path, "\n".join(lines) + "\n"))
    assert math.isnan(run.metrics["kd"].values[1])
    assert run.metrics["kd"].finite().values == (1.5,)
    assert set(run.metrics) == {"kd"}
    assert run.last("kd") == 1.5
    assert "kd: 3 values are not finite, first at step 2." in run.notes


def test_figures_that_fail_together_share_a_note(tmp_path: Path) -> None:
    lines = ['{"step": 1, "ce": 1.5, "kd": 1, "bpb": 2}', '{"step": 2, "ce": NaN, "kd": null}']
    lines += ['{"step": 3, "ce": NaN, "kd": NaN, "bpb": NaN}']
    run = load_run(metrics(tmp_path, "\n".join(lines) + "\n"))
    said = [note for note in run.notes if "finite" in note]
    assert said == [
        "ce, kd: 2 values are not finite each, first at step 2.",
        "bpb: 1 value is not finite, first at step 3.",
    ]


def test_resumed_run_shows_what_was_kept(tmp_path: Path) -> None:
    steps = [1, 2, 3, 4, 5, 3, 4, 5, 6]
    text = "".join(json.dumps({"step": s, "ce": i}) + "\n" for i, s in enumerate(steps))
    run = load_run(metrics(tmp_path, text))
    assert run.metrics["ce"].steps == (1, 2, 3, 4, 5, 6)
    assert run.metrics["ce"].values == (0, 1, 5, 6, 7, 8)
    assert run.resumed_at == [3]


@pytest.mark.parametrize("content", ["", "\n\n", "{"])
def test_empty_metrics(tmp_path: Path, content: str) -> None:
    run = load_run(metrics(tmp_path, content))
    assert run.metrics == {}
    assert run.steps == 0
    assert "metrics.jsonl is empty: no curves." in run.notes


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a run folder: it holds none of"):
        load_run(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="is a file"):
        load_run(file)


@pytest.mark.parametrize(
    "name", ["audit.json", "alignment.json", "samples.json", "environment.json"]
)
def test_damaged_json_becomes_a_note(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path, steps=3)
    (folder / name).write_text('{"half": ')
    run = load_run(folder)
    assert any(note.startswith(f"{name} is not JSON") for note in run.notes)


def test_damaged_settings_and_tables_become_notes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    (folder / "run.yaml").write_text("student: [unclosed")
    (folder / "evaluation.json").write_text('{"tables": [3]}')
    run = load_run(folder)
    assert any("run.yaml is not YAML" in note for note in run.notes)
    assert any("evaluation.json, table 0" in note for note in run.notes)
    assert run.config_text == "student: [unclosed"
    # The audit still knows who is who.
    assert run.student == "gpt2-mini"


def test_lm_eval_files_become_a_table(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    (folder / "lm_eval").mkdir()
    for name, value in (("after", 0.3), ("before", 0.1), ("another", 0.2)):
        content = {"results": {"piqa": {"acc,none": value}}}
        (folder / "lm_eval" / f"{name}.json").write_text(json.dumps(content))
    (folder / "lm_eval" / "broken.json").write_text("[]")
    run = load_run(folder)
    table = run.evaluation[-1]
    assert table.columns == ("before", "after", "another")
    assert table.rows[0].values["after"] == 0.3
    assert any("broken.json" in note for note in run.notes)


def test_alignment_of_several_teachers(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    for content in ({"teachers": [{"teacher": "a"}, {"teacher": "b"}]}, [{"teacher": "a"}] * 2):
        (folder / "alignment.json").write_text(json.dumps(content))
        assert len(load_run(folder).alignments) == 2


def test_differences_name_settings(tmp_path: Path) -> None:
    runs = [
        load_run(make_run(tmp_path, name="a", steps=3)),
        load_run(make_run(tmp_path, name="b", steps=3, loss="gold", seed=7)),
    ]
    assert differences(runs) == {"loss.kind": ["p_kl", "gold"], "seed": ["0", "7"]}
    assert differences(runs[:1] * 2) == {}


def test_flatten_and_names() -> None:
    nested = {"a": {"b": [1, 2], "c": [{"d": None}]}, "e": True}
    assert flatten(nested) == {"a.b": [1, 2], "a.c.0.d": None, "e": True}
    assert short_name("/models/tiny/") == "tiny"
    assert short_name("owner/name") == "name"
    assert short_name("plain") == "plain"
