import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xtoken.config import LOSS_CLASSES, RunConfig, load_run
from xtoken.config.training_keys import DEFAULTS, MANAGED, training_fields
from xtoken.config.yaml_text import dump_yaml_text, parse_yaml
from xtoken.errors import ConfigError

MINIMAL = """\
student: {model: small}
teachers:
  - model: big
data: {train: text.jsonl}
output_dir: runs/one
"""
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ------------------------------------------------------------------ what loads


def test_minimal_run_has_the_documented_defaults(write):
    run = load_run(write(MINIMAL))
    assert (run.student.model, run.teachers[0].model, run.output_dir, run.seed) == (
        "small",
        "big",
        "runs/one",
        42,
    )
    assert run.data.train[0].path == "text.jsonl"
    assert run.loss.kind == "path_kl"
    assert run.combine.scaling == "fixed"
    arguments = run.training_arguments()
    assert arguments["learning_rate"] == 5e-5
    assert arguments["lr_scheduler_type"] == "cosine"
    assert arguments["output_dir"] == "runs/one"
    assert arguments["seed"] == 42
    assert "bf16" not in arguments


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_example_run_file_loads(path):
    run = load_run(path)
    assert RunConfig.parse(run.to_dict()).to_dict() == run.to_dict()
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#"), "an example says first what it is for"


def test_there_are_example_run_files():
    assert CONFIGS


@pytest.mark.parametrize("kind", LOSS_CLASSES)
def test_resolved_run_file_loads_and_says_the_same(write, tmp_path, kind):
    run = load_run(write(MINIMAL), [f"loss.kind={kind}", "training.learning_rate=1e-4"])
    run.dump_yaml(tmp_path / "out" / "resolved.yaml")
    again = load_run(tmp_path / "out" / "resolved.yaml")
    assert again.to_dict() == run.to_dict()
    assert again.loss == run.loss
    assert again.training_arguments() == run.training_arguments()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["resolved.yaml"]


def test_resolved_run_file_is_the_same_to_a_yaml_1_1_reader(write, tmp_path):
    run = load_run(write(MINIMAL), ["student.model='no'", "data.text_column='5e-5'"])
    run.dump_yaml(tmp_path / "resolved.yaml")
    theirs = yaml.safe_load((tmp_path / "resolved.yaml").read_text(encoding="utf-8"))
    assert theirs == run.to_dict()
    assert theirs["student"]["model"] == "no"


def test_failed_dump_leaves_the_earlier_file(write, tmp_path):
    run = load_run(write(MINIMAL))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="can't be written"):
        run.dump_yaml(tmp_path / "file" / "run.yaml")
    assert (tmp_path / "file").read_text() == "x"


def test_teacher_names_are_distinct(write):
    run = load_run(
        write(MINIMAL),
        [
            "teachers.0.model=org/Big-1.7B",
            "teachers.1={model: Big-1.7B, loss: {kind: uld}}",
            "teachers.2={model: big.gguf, name: x}",
        ],
    )
    assert run.teacher_names() == ["Big-1.7B", "Big-1.7B-2", "x"]
    assert [run.loss_of(i).kind for i in range(3)] == ["path_kl", "uld", "path_kl"]


def test_evaluation_data_switches_evaluation_on(write):
    path = write(MINIMAL)
    assert "eval_strategy" not in load_run(path).training_arguments()
    arguments = load_run(path, ["data.eval_split=0.1", "training.save_steps=7"])
    assert arguments.training_arguments()["eval_steps"] == 7
    arguments = load_run(path, ["data.eval=e.txt", "training.save_strategy=best"])
    assert arguments.training_arguments()["eval_strategy"] == "epoch"
    arguments = load_run(path, ["data.eval=e.txt", "training.eval_strategy=no"])
    assert arguments.training_arguments()["eval_strategy"] == "no"


# ------------------------------------------------------------------ agreement with other rooms


def test_losses_are_those_of_the_registry_with_the_same_settings_and_defaults():
    from xtoken.losses import LOSSES, loss_settings

    assert set(LOSS_CLASSES) == set(LOSSES)
    for kind, settings_class in LOSS_CLASSES.items():
        assert settings_class().settings() == loss_settings(kind)


def test_projection_rules_are_those_of_build():
    from xtoken.config import ProjectionSettings
    from xtoken.projection import Projection

    parameters = inspect.signature(Projection.build).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    assert ProjectionSettings().rules() == defaults


def test_combination_settings_are_those_of_training():
    from xtoken.config import CombineSettings
    from xtoken.training.combine import SCALINGS, Combine

    mixing = {"teachers", "teacher_weights", "log_vocab_normalization"}
    assert Combine(**CombineSettings().model_dump(exclude=mixing)) == Combine()
    for scaling in SCALINGS:
        assert CombineSettings(scaling=scaling).scaling == scaling


def test_training_fields_read_off_the_source_are_those_of_the_class():
    from transformers import TrainingArguments
    from transformers.trainer_utils import SchedulerType

    fields = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}
    assert set(training_fields()) == set(fields)
    assert set(MANAGED) <= set(fields)
    assert training_fields()["lr_scheduler_type"].choices == tuple(s.value for s in SchedulerType)
    for name, value in DEFAULTS.items():
        assert training_fields()[name].kinds, f"the type of {name} is checked"
        assert name not in MANAGED
        assert value is not None


def test_default_training_arguments_are_accepted_by_transformers(write, tmp_path):
    from transformers import TrainingArguments

    run = load_run(write(MINIMAL), [f"output_dir={tmp_path}/x", "data.eval_split=0.5"])
    arguments = TrainingArguments(**run.training_arguments(), use_cpu=True)
    assert arguments.eval_steps == arguments.save_steps


# ------------------------------------------------------------------ what is refused


def test_all_problems_come_in_one_message_in_the_order_of_the_file(write):
    message = refused(
        write("""\
student:
  modle: small
  model: small
teachers:
  - model: big
    weight: heavy
data:
  train: a.txt
  eval_split: 2
loss:
  kind: p_kl
  top_k: 5
training:
  learnin_rate: 1
""")
    )
    expected = [
        "output_dir is missing",
        "line 2: student.modle is unknown; did you mean student.model?",
        'line 6: teachers.0.weight is the text "heavy"; expected a number',
        "line 9: data.eval_split is 2; expected a finite number above 0 and below 1",
        "line 12: loss.top_k has no effect with support: full",
        "line 14: training.learnin_rate is no field of transformers.TrainingArguments; did you "
        "mean training.learning_rate?",
    ]
    positions = [message.find(text) for text in expected]
    assert -1 not in positions, message
    assert positions == sorted(positions)
    assert message.startswith("6 things are wrong with ")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learning_rate=1e-5", "did you mean training.learning_rate?"),
        ("temperature=2", "did you mean loss.temperature?"),
        ("data.max_lenght=5", "data.max_lenght is unknown; did you mean data.max_length?"),
        ("loss.temprature=2", "loss.temprature is unknown; did you mean loss.temperature?"),
        ("loss.threshold=0.5", "loss.threshold is a setting of h_kl, not of path_kl"),
        ("teachers.0.loss={kind: direct, pooling: mean}", "teachers.0.loss.pooling is a setting"),
        ("loss.kind=hkl", "did you mean h_kl?"),
        ("loss=3", "loss is 3; expected a mapping"),
        ("student.dtype=fp16", "expected auto, float32, bfloat16 or float16"),
        ("seed=true", "seed is true; expected a whole number"),
        ("seed=-1", "seed is -1; expected a whole number of at least 0"),
        ("data.max_length='10'", 'data.max_length is the text "10"; expected a whole number'),
        ("data.max_length=10.5", "data.max_length is 10.5; expected a whole number"),
        ("data.teacher_max_length=x", "expected a whole number or null"),
        ("data.packing=yes", 'is the text "yes"; expected true or false'),
        ("loss.temperature=0", "loss.temperature is 0; expected a finite number above 0"),
        ("loss.temperature=.inf", "loss.temperature is inf; expected a finite number above 0"),
        ("teachers=[]", "teachers is an empty list; expected at least one entry"),
        ("teachers={model: x}", "teachers is a mapping; expected a list"),
        ("student=x", 'student is the text "x"; expected a mapping'),
        ("student={}", "student.model is missing; expected a name or a path"),
        ("student.model=''", "student.model is an empty text"),
        ("student.lora={dropout: 1}", "student.lora.dropout is 1; expected a finite number"),
        ("student.lora={target_modules: 3}", "expected all-linear, or a list of module names"),
        ("data.train=3", "expected a path or name, {path, name, split}, or a list of these"),
        ("data.train={path: x, splt: y}", "did you mean data.train.0.split?"),
        ("data.encoding=utf-9", "expected an encoding that Python knows"),
        ("training=3", "training is 3; expected a mapping"),
        ("training.seed=3", "training.seed is set at the top level of the run file: seed"),
        ("training.output_dir=x", "training.output_dir is set at the top level"),
        ("training.remove_unused_columns=true", "is always false here"),
        ("training.lr_scheduler_type=cosin", "did you mean cosine?"),
        ("training.bf16=1", "training.bf16 is 1; expected true or false"),
        ("training.max_steps=many", 'is the text "many"; expected a whole number'),
        ("training.max_steps=null", "training.max_steps is null; expected a whole number"),
    ],
)
def test_wrong_values_are_explained_with_their_override(write, override, says):
    message = refused(write(MINIMAL), [override])
    assert says in message
    assert message.startswith(f"override {override}: "), message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["loss={kind: p_kl, top_k: 64}"], "loss.top_k has no effect with support: full"),
        (["loss.jsd_beta=0.5"], "set direction: jsd"),
        (["loss={kind: gold, lambda_kl: 1}"], "set weights: fixed"),
        (["loss={kind: h_kl, lambda_uld: 0, uld_top_k: 5}"], "has no effect with lambda_uld: 0"),
        (["combine={kd: 0, ce: 0}"], "there is nothing to train"),
        (["combine={ce: 0, scaling: dynamic}"], "set combine.scaling: fixed"),
        (["teachers.0.weight=0"], "give one a weight above 0"),
        (["teachers.1.model=big"], "is the same teacher with the same loss as teachers.0"),
        (
            ["teachers.0.name=x", "teachers.1={model: other, name: x}"],
            "teachers.1.name is the name of teachers.0 too",
        ),
        (["student.quantization=4bit"], "add student.lora"),
        (["student.dtype=float16"], "float32 with training.fp16: true"),
        (["teachers.0={model: a.gguf, quantization: 8bit}"], "a GGUF file"),
        (["data.eval=a", "data.eval_split=0.5"], "keep one of the two"),
        (["training.eval_strategy=steps"], "set data.eval, or data.eval_split"),
        (["training.load_best_model_at_end=true"], "needs evaluation data"),
        (["training={bf16: true, fp16: true}"], "are both true"),
        (["projection={path: w, gamma: 0.2}"], "projection.gamma has no effect"),
        (
            ["loss.kind=p_kl", "projection={reverse: true, rule: longest_prefix}"],
            "use rule: multi_token",
        ),
        (["projection.gamma=0"], "projection.gamma has no effect with loss.kind: path_kl"),
        (["loss.support=topk_rest"], "a setting of p_kl, not of path_kl; set loss.kind: p_kl"),
        (["data={train: x, format: text, prompt_column: p}"], "set format: prompt_completion"),
        (["loss={kind: p_kl, weights_learning_rate: 0.1}"], "set weights: learned"),
        (["combine.teachers=best"], "a choice between teachers, but there is one"),
        (["combine.teacher_weights=ce"], "a choice between teachers, but there is one"),
        (
            ["teachers.1={model: b}", "combine={teachers: best, teacher_weights: static}"],
            "by which no teacher is the best",
        ),
        (
            ["teachers.1={model: b}", "combine={teachers: average_logits, teacher_weights: ce}"],
            "averaged logits have the teachers' own weights",
        ),
        (
            ["teachers.1={model: b, loss: {kind: uld}}", "combine.teachers=average_logits"],
            "averaged logits have one loss",
        ),
    ],
)
def test_impossible_combinations_are_refused_with_the_fix(write, overrides, says):
    message = refused(write(MINIMAL), overrides)
    assert says in message
    assert "things are wrong" not in message, "nothing else is blamed"


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss={kind: p_kl, top_k: null}"],
        ["projection.gamma=0.1"],
        ["projection.gamma=0", "teachers.0.loss={kind: h_kl}"],
        ["loss.temperature=2"],
        ["loss={kind: p_kl, support: topk_rest, top_k: 64}"],
        ["loss={kind: gold, weights: fixed, lambda_kl: 2}"],
        ["combine={ce: 0, scaling: fixed}"],
        ["combine={kd: 0}", "teachers.0.weight=0"],
        ["teachers.1={model: big, loss: {kind: uld}}"],
        ["student={model: m, quantization: 4bit, lora: {r: 8}}"],
        ["student.lora.target_modules=[q_proj, v_proj]"],
        ["data.train=[a.jsonl, {path: wiki, name: en, split: test}]"],
        ["training.learning_rate=5e-5", "training.save_steps=10"],
        ["training.report_to=[tensorboard]", "training.warmup_steps=100"],
    ],
)
def test_possible_combinations_load(write, tmp_path, overrides):
    run = load_run(write(MINIMAL), overrides)
    run.dump_yaml(tmp_path / "resolved.yaml")
    assert load_run(tmp_path / "resolved.yaml").to_dict() == run.to_dict()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("loss.kind", "is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("loss..kind=3", "is not of the form key=value"),
        ("teachers.2.model=x", "expected a number from 0 to 1 (1 adds an entry)"),
        ("teachers.first.model=x", "expected a number from 0 to 1"),
        ("output_dir.x=1", 'reaches into output_dir, which is the text "runs/one"'),
        ("loss.kind=[", "is not valid YAML"),
    ],
)
def test_overrides_that_can_not_be_applied(write, override, says):
    assert says in refused(write(MINIMAL), [override])


def test_overrides_reach_through_what_is_not_there_yet(write):
    run = load_run(
        write(MINIMAL), ["student.lora.r=8", "teachers.1.model=x", "teachers.1.weight=2"]
    )
    assert run.student.lora is not None
    assert run.student.lora.r == 8
    assert (run.teachers[1].model, run.teachers[1].weight) == ("x", 2)


# ------------------------------------------------------------------ files


def test_files_that_are_no_run_files(tmp_path, write):
    assert "There is no run file" in refused(tmp_path / "none.yaml")
    assert "is a directory" in refused(tmp_path)
    assert "is empty; expected a mapping with at least student" in refused(write("# only\n"))
    assert "holds a list" in refused(write("- 1\n"))
    message = refused(write("a: 1\nb: [1, 2\nc: 3\n"))
    assert "is not valid YAML" in message
    assert re.search(r"line \d, column \d", message)
    message = refused(write(MINIMAL + "seed: 1\nseed: 2\n"))
    assert "line 7: the key seed stands here a second time (first in line 6)" in message
    (tmp_path / "latin.yaml").write_bytes(b"student: {model: caf\xe9}\n")
    assert "is not UTF-8: byte 20 is 0xe9" in refused(tmp_path / "latin.yaml")


def test_numbers_and_booleans_are_what_they_look_like():
    def read(text):
        return parse_yaml(text, "here")[0]

    assert read("5e-5") == 5e-5
    assert read("1_000") == "1_000"
    assert read("010") == 10
    assert read("1:30") == "1:30"
    assert read("2024-01-01") == "2024-01-01"
    assert read("no") == "no"
    assert read("[true, ~, null]") == [True, None, None]
    assert read("") is None
    assert read("{a: &x {b: 1}, c: {<<: *x, d: 2}}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_what_is_dumped_is_read_back(data):
    text = dump_yaml_text(data)
    assert parse_yaml(text, "here")[0] == data
    assert yaml.safe_load(text) == data


def test_loading_a_run_file_needs_no_torch(write):
    code = (
        "import sys; from xtoken.config import load_run; "
        f"load_run({str(write(MINIMAL))!r}, ['training.max_steps=3']); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
