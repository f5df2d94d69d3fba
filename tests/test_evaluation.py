from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from xtoken import Projection, Vocabulary, align
from xtoken.encode import encode_text
from xtoken.errors import EvaluationError, ProjectionError
from xtoken.evaluation import (
    EvaluationTable,
    bits_per_byte,
    compare,
    load_evaluation,
    load_lm_eval,
    save_evaluation,
)
from xtoken.evaluation.bpb import common_starts
from xtoken.evaluation.classes import byte_classes, split_by_class
from xtoken.evaluation.tables import EvaluationRow, format_value
from xtoken.evaluation.windows import chunk_windows, token_windows

LN2 = math.log(2.0)
TEXTS = [
    "The quick brown fox jumps over 201 lazy dogs near the river bank. 🦊 Ünïcödé!",
    "x",
    "",
    "In 1984 there were 201 people and 37 dogs; by 2024 there were 365 people.\n\n" * 3,
    "狐狸跳过懒狗。 مرحبا",
]


class Uniform:
    """Gives every row of the head the same logit."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        self.calls.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.rows))


class Bigram(torch.nn.Module):
    """Logits depend on the last token alone, so windows can't change a token's probability."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(rows, rows, generator=generator))

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.fixture(scope="module")
def byte_vocab() -> Vocabulary:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary.from_tokenizer(tokenizer, name="bytes")


@pytest.fixture(scope="module")
def pair(tiny_pair):
    from transformers import AutoModelForCausalLM

    loaded = []
    for folder in tiny_pair:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # Random heads of this size are all but uniform; sharper ones make differences show.
        with torch.no_grad():
            model.lm_head.weight.mul_(25.0)
        loaded += [model.eval(), Vocabulary.from_pretrained(folder)]
    return SimpleNamespace(
        student=loaded[0], student_vocab=loaded[1], teacher=loaded[2], teacher_vocab=loaded[3]
    )


# ---- bits per byte ---------------------------------------------------------------------------


def test_uniform_model_over_bytes_has_eight_bits_per_byte(byte_vocab: Vocabulary) -> None:
    result = bits_per_byte(Uniform(256), byte_vocab, TEXTS, max_length=16)
    assert result.bpb == pytest.approx(8.0, abs=1e-6)
    # Every byte but the first of each text; the one-byte and the empty text give nothing.
    sizes = [len(text.encode()) for text in TEXTS]
    assert result.bytes == sum(size - 1 for size in sizes if size > 1)
    assert result.tokens == result.bytes
    assert result.documents == 3


def test_padded_rows_take_no_probability(byte_vocab: Vocabulary) -> None:
    assert bits_per_byte(Uniform(300), byte_vocab, TEXTS[0]).bpb == pytest.approx(8.0, abs=1e-6)


def direct_bits(model, vocab: Vocabulary, texts: list[str]) -> tuple[float, int]:
    """Token by token, one whole text at a time."""
    nats, size = 0.0, 0
    for text in texts:
        encoding = encode_text(vocab, text)
        if not len(encoding):
            continue
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(encoding.ids[None])).logits[0].double()
        first = True
        for position, token in enumerate(encoding.ids.tolist()):
            if vocab.role(token) is not None:
                continue
            if not first:
                row = logits[position - 1, : len(vocab)]
                nats -= float(torch.log_softmax(row, -1)[token])
                size += len(vocab.token_bytes(token))
            first = False
    return nats, size


def test_equals_direct_computation_where_texts_fit(pair) -> None:
    texts = [text for text in TEXTS if text]
    nats, size = direct_bits(pair.student, pair.student_vocab, texts)
    result = bits_per_byte(pair.student, pair.student_vocab, texts, max_length=256)
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.bytes == size
    assert result.bpb == pytest.approx(nats / (LN2 * size), rel=1e-5)


def test_long_texts_equal_a_loop_over_windows(pair) -> None:
    text, vocab, length, stride = TEXTS[3], pair.student_vocab, 12, 5
    ids = encode_text(vocab, text).ids.tolist()
    assert vocab.role(ids[0]) is None
    assert len(ids) > 40
    nats, end, start = 0.0, 0, 0
    while end < len(ids):
        stop = min(start + length, len(ids))
        window = ids[max(0, stop - length) : stop]
        with torch.no_grad():
            logits = pair.student(input_ids=torch.tensor([window])).logits[0].double()
        for position in range(max(end, 1), stop):
            row = position - (stop - len(window)) - 1
            nats -= float(torch.log_softmax(logits[row, : len(vocab)], -1)[ids[position]])
        end, start = stop, start + stride
    result = bits_per_byte(pair.student, vocab, text, max_length=length, stride=stride)
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.tokens == len(ids) - 1


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_batch_size_changes_nothing(pair, batch_size: int) -> None:
    options = {"max_length": 16, "stride": 7}
    one = bits_per_byte(pair.student, pair.student_vocab, TEXTS, **options)
    many = bits_per_byte(pair.student, pair.student_vocab, TEXTS, batch_size=batch_size, **options)
    assert many.nats == pytest.approx(one.nats, rel=1e-5)
    assert (many.bytes, many.tokens, many.documents) == (one.bytes, one.tokens, one.documents)


@pytest.mark.parametrize(("length", "stride"), [(2, 1), (5, 4), (8, None), (64, 3), (1024, 1)])
def test_windows_change_nothing_for_a_model_without_memory(
    byte_vocab: Vocabulary, length: int, stride: int | None
) -> None:
    model = Bigram(256)
    whole = bits_per_byte(model, byte_vocab, TEXTS, max_length=2048)
    cut = bits_per_byte(model, byte_vocab, TEXTS, max_length=length, stride=stride)
    assert cut.nats == pytest.approx(whole.nats, rel=1e-6)
    assert (cut.bytes, cut.tokens) == (whole.bytes, whole.tokens)


@pytest.fixture(scope="module")
def with_bos(tiny_pair) -> Vocabulary:
    """The student's tokenizer, which also puts a bos first."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[0])
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer = type(tokenizer)(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    return Vocabulary.from_tokenizer(tokenizer)


def test_bos_stands_in_every_window_and_scores_nothing(pair, with_bos: Vocabulary) -> None:
    bos = with_bos.role_id("bos")
    assert encode_text(with_bos, "the people").ids[0] == bos
    windows: list[list[int]] = []
    model = Bigram(len(with_bos))

    def spy(input_ids: torch.Tensor, **options: object) -> SimpleNamespace:
        windows.extend(input_ids.tolist())
        return model(input_ids, **options)

    result = bits_per_byte(spy, with_bos, TEXTS[3], max_length=9, stride=4)
    assert len(windows) > 3
    assert {window[0] for window in windows} == {bos}
    # The first token of the text is predictable behind a bos, and left out all the same.
    plain = pair.student_vocab
    expected = bits_per_byte(model, plain, TEXTS[3], max_length=9, stride=4)
    assert result.bytes == expected.bytes
    assert result.nats == pytest.approx(expected.nats, rel=1e-6)


def test_common_starts_score_the_same_bytes(pair, byte_vocab: Vocabulary) -> None:
    vocabs = [pair.student_vocab, pair.teacher_vocab, byte_vocab]
    starts = common_starts(vocabs, TEXTS)
    sizes = {
        bits_per_byte(Uniform(len(vocab)), vocab, TEXTS, starts=starts).bytes for vocab in vocabs
    }
    assert len(sizes) == 1
    total = sum(len(t.encode()) - s for t, s in zip(TEXTS, starts, strict=True) if t)
    assert sizes == {total}


def test_first_token_is_never_scored(pair, with_bos: Vocabulary) -> None:
    model = Bigram(len(with_bos))
    for vocab in (pair.student_vocab, with_bos):
        expected = bits_per_byte(model, vocab, TEXTS)
        assert bits_per_byte(model, vocab, TEXTS, starts=[0] * len(TEXTS)) == expected


def test_classes_add_up(pair) -> None:
    result = bits_per_byte(pair.student, pair.student_vocab, TEXTS, by_class=True)
    parts = result.by_class
    assert sum(part.nats for part in parts.values()) == pytest.approx(result.nats, rel=1e-9)
    assert sum(part.bytes for part in parts.values()) == pytest.approx(result.bytes, abs=len(parts))
    assert {"numeral_3", "numeral_4plus", "letters_latin", "punctuation"} <= set(parts)
    assert json.loads(json.dumps(result.to_dict()))["by_class"].keys() == parts.keys()


def test_classes_of_bytes() -> None:
    text = "a 201 is\n\n狐 1984."
    codes, keys = byte_classes(text)
    assert len(codes) == len(text.encode())
    named = [keys[code] for code in codes]
    assert named[0] == "letters_latin"
    assert named[1:5] == ["numeral_3"] * 4
    assert named[8:10] == ["whitespace"] * 2
    assert named[10:13] == ["letters_han"] * 3
    assert named[13:18] == ["numeral_4plus"] * 5
    assert named[18] == "punctuation"
    assert split_by_class((codes, keys), 0, 4) == {"letters_latin": 0.25, "numeral_3": 0.75}


@given(st.text(max_size=60))
def test_classes_cover_any_text(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    codes, keys = byte_classes(text)
    assert len(codes) == len(text.encode())
    assert len(codes) == 0 or codes.max() < len(keys)


def test_progress_adds_up_to_the_bytes(pair) -> None:
    seen: list[int] = []
    result = bits_per_byte(
        pair.student, pair.student_vocab, TEXTS, max_length=10, progress=seen.append
    )
    assert sum(seen) == result.bytes


def test_model_is_put_back_into_its_mode(pair) -> None:
    pair.student.train()
    bits_per_byte(pair.student, pair.student_vocab, TEXTS[0])
    assert pair.student.training
    pair.student.eval()


def test_own_limit_of_a_model_is_kept(pair) -> None:
    lengths: list[int] = []
    model = pair.student

    def spy(input_ids: torch.Tensor, **options: object) -> object:
        lengths.append(input_ids.shape[1])
        return model(input_ids=input_ids, **options)

    spy.config = model.config
    bits_per_byte(spy, pair.student_vocab, TEXTS[3] * 20, max_length=4096)
    assert max(lengths) == model.config.max_position_embeddings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 16, "max_length": 16}, "stride is 16; expected 1 to 15"),
        ({"stride": 0}, "stride is 0"),
        ({"max_length": 1}, "expected at least 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"starts": [0]}, "starts has 1 entries for 5 texts"),
    ],
)
def test_impossible_options_are_refused(byte_vocab: Vocabulary, options, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        bits_per_byte(Uniform(256), byte_vocab, TEXTS, **options)


@pytest.mark.parametrize("texts", ["", [], ["", ""], ["x"]])
def test_nothing_to_score_is_said(byte_vocab: Vocabulary, texts) -> None:
    with pytest.raises(EvaluationError, match="No token could be scored"):
        bits_per_byte(Uniform(256), byte_vocab, texts)


def test_damaged_models_are_refused(byte_vocab: Vocabulary) -> None:
    with pytest.raises(EvaluationError, match="200 logits"):
        bits_per_byte(Uniform(200), byte_vocab, TEXTS)
    model = Bigram(256)
    model.table.data[:] = math.nan
    with pytest.raises(EvaluationError, match="NaN"):
        bits_per_byte(model, byte_vocab, TEXTS)
    with pytest.raises(EvaluationError, match="int"):
        bits_per_byte(model, byte_vocab, [3])


# ---- windows ---------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(2, 50), st.data())
def test_token_windows_score_each_token_once(count: int, length: int, data) -> None:
    stride = data.draw(st.integers(1, length - 1))
    windows = list(token_windows(count, length, stride))
    scored = [i for w in windows for i in range(w.first, w.stop)]
    assert scored == list(range(count))
    if count > length:
        assert windows[-1].stop - windows[-1].start == length
    for number, window in enumerate(windows):
        assert 0 <= window.start <= window.first < window.stop <= window.start + length
        if number:
            assert window.first - window.start >= length - stride


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)), max_size=60),
    st.integers(2, 24),
    st.integers(2, 24),
    st.data(),
)
@settings(max_examples=200)
def test_chunk_windows_fit_and_score_each_chunk_once(spec, ours: int, theirs: int, data) -> None:
    sides = []
    for which in (1, 2):
        starts, stops, at = [], [], 0
        for item in spec:
            starts.append(at + item[0])
            at = starts[-1] + item[which]
            stops.append(at)
        sides.append((np.array(starts, dtype=np.int64), np.array(stops, dtype=np.int64)))
    capacities = (ours, theirs)
    strides = tuple(data.draw(st.integers(1, size - 1)) for size in capacities)
    scored: list[int] = []
    if spec:
        for window in chunk_windows(sides, capacities, strides):
            assert window.start <= window.first < window.stop
            scored += range(window.first, window.stop)
            for (starts, stops), size in zip(sides, capacities, strict=True):
                assert stops[window.stop - 1] - starts[window.start] <= size
    fits = [c for c, item in enumerate(spec) if item[1] <= ours and item[2] <= theirs]
    assert scored == fits


# ---- comparison ------------------------------------------------------------------------------


def test_identical_models_agree(pair) -> None:
    result = compare(
        pair.student, pair.student_vocab, pair.student, pair.student_vocab, TEXTS, max_length=32
    )
    assert result.agreement == 1.0
    assert result.kl_per_chunk == pytest.approx(0.0, abs=1e-6)
    assert result.kept_mass == pytest.approx(1.0, abs=1e-5)
    assert result.bytes_aligned == 1.0
    assert result.student_bpb == pytest.approx(result.teacher_bpb, rel=1e-7)


def direct_comparison(pair, text: str) -> tuple[float, float, int, float]:
    """One short text, dense W, loops: (agreement, KL a chunk, chunks, student's nats)."""
    sv, tv = pair.student_vocab, pair.teacher_vocab
    w = Projection.build(sv, tv)
    ours, theirs = encode_text(sv, text), encode_text(tv, text)
    chunks = align(sv, tv, ours.ids, theirs.ids)
    with torch.no_grad():
        s = pair.student(input_ids=torch.tensor(ours.ids[None])).logits[0].double()[:, : len(sv)]
        t = pair.teacher(input_ids=torch.tensor(theirs.ids[None])).logits[0].double()[:, : len(tv)]
    s[:, w.student_masked] = -math.inf
    t[:, w.teacher_masked] = -math.inf
    dense = np.zeros((len(sv), len(tv)))
    for row in range(len(sv)):
        for slot, column in enumerate(w.indices[row]):
            if column >= 0:
                dense[row, column] += w.weights[row, slot]
    reached = dense.any(axis=0)
    hits = kl = 0.0
    for c in range(1, len(chunks)):
        q = s[chunks.student_start[c] - 1].softmax(-1).numpy() @ dense
        p = t[chunks.teacher_start[c] - 1].softmax(-1).numpy()
        hits += np.where(reached, q, -1).argmax() == np.where(reached, p, -1).argmax()
        folded = np.zeros(len(tv))
        for u in range(len(tv)):
            if w.teacher_fold[u] >= 0:
                folded[w.teacher_fold[u]] += p[u]
        folded /= folded.sum()
        on = folded > 0
        kl += float((folded[on] * np.log(folded[on] / q[on])).sum())
    nats, _ = direct_bits(pair.student, sv, [text])
    count = len(chunks) - 1
    return hits / count, kl / count, count, nats


def test_comparison_equals_direct_computation(pair) -> None:
    text = TEXTS[0]
    hits, kl, count, nats = direct_comparison(pair, text)
    result = compare(pair.student, pair.student_vocab, pair.teacher, pair.teacher_vocab, text)
    assert result.chunks == count
    assert result.agreement == pytest.approx(hits)
    assert result.kl_per_chunk == pytest.approx(kl, rel=1e-4)
    # The first chunk may hold more than the first token.
    first = align(
        pair.student_vocab,
        pair.teacher_vocab,
        encode_text(pair.student_vocab, text).ids,
        encode_text(pair.teacher_vocab, text).ids,
    )
    if first.student_stop[0] == 1:
        assert result.student.nats == pytest.approx(nats, rel=1e-5)
    assert result.student.bytes == result.teacher.bytes == len(text.encode()) - first.byte_stop[0]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_comparison_does_not_depend_on_the_batch(pair, batch_size: int) -> None:
    arguments = (pair.student, pair.student_vocab, pair.teacher, pair.teacher_vocab, TEXTS)
    one = compare(*arguments, max_length=24)
    many = compare(*arguments, max_length=24, batch_size=batch_size)
    assert many.chunks == one.chunks
    assert many.agreement == one.agreement
    assert many.kl_per_chunk == pytest.approx(one.kl_per_chunk, rel=1e-4)
    assert many.student.nats == pytest.approx(one.student.nats, rel=1e-5)


def test_comparison_windows_change_nothing_without_memory(pair) -> None:
    student, teacher = Bigram(len(pair.student_vocab), 1), Bigram(len(pair.teacher_vocab), 2)
    arguments = (student, pair.student_vocab, teacher, pair.teacher_vocab, TEXTS)
    whole = compare(*arguments)
    cut = compare(*arguments, max_length=40, stride=13)
    assert cut.chunks == whole.chunks
    assert cut.student.bytes == whole.student.bytes
    assert cut.kl_per_chunk == pytest.approx(whole.kl_per_chunk, rel=1e-5)
    assert cut.agreement == pytest.approx(whole.agreement)
    assert cut.teacher.nats == pytest.approx(whole.teacher.nats, rel=1e-6)


def test_comparison_does_not_depend_on_a_bos(pair, with_bos: Vocabulary) -> None:
    student, teacher = Bigram(len(with_bos), 1), Bigram(len(pair.teacher_vocab), 2)
    arguments = (teacher, pair.teacher_vocab, TEXTS)
    w = Projection.build(pair.student_vocab, pair.teacher_vocab)
    plain = compare(student, pair.student_vocab, *arguments, w, max_length=30)
    headed = compare(student, with_bos, *arguments, w, max_length=30)
    assert headed.chunks == plain.chunks
    assert headed.kl_per_chunk == pytest.approx(plain.kl_per_chunk, rel=1e-5)
    assert headed.student.nats == pytest.approx(plain.student.nats, rel=1e-6)
    same = compare(student, with_bos, student, with_bos, TEXTS)
    without = compare(student, pair.student_vocab, student, pair.student_vocab, TEXTS)
    assert same.chunks == without.chunks == same.student.tokens


def test_comparison_refuses_what_it_can_not_use(pair, byte_vocab: Vocabulary) -> None:
    arguments = (pair.student, pair.student_vocab, pair.teacher, pair.teacher_vocab)
    with pytest.raises(EvaluationError, match="No chunk could be compared"):
        compare(*arguments, ["", "x"])
    other = Projection.identity(byte_vocab)
    with pytest.raises(ProjectionError):
        compare(*arguments, TEXTS, other)
    with pytest.raises(EvaluationError, match="batch_size"):
        compare(*arguments, TEXTS, batch_size=0)


# ---- tables ----------------------------------------------------------------------------------


def test_tables_come_back_from_their_file(tmp_path) -> None:
    table = EvaluationTable.from_columns(
        "held-out",
        {"before": {"bits_per_byte": 2.0, "custom_score": 1.5}, "after": {"bits_per_byte": 1.5}},
        note="200 documents",
    )
    save_evaluation(tmp_path, [table])
    (again,) = load_evaluation(tmp_path)
    assert again == table
    assert again.row("bits_per_byte").better == "lower"
    assert again.row("custom_score").label == "custom score"
    assert again.row("bits_per_byte").format("teacher") == ""


def test_tables_keep_values_that_are_not_finite_apart(tmp_path) -> None:
    row = EvaluationRow.of("bits_per_byte", {"before": math.inf, "after": 1.0})
    save_evaluation(tmp_path, [EvaluationTable("t", ("before", "after"), (row,))])
    assert json.loads((tmp_path / "evaluation.json").read_text())
    (table,) = load_evaluation(tmp_path)
    assert math.isnan(table.rows[0].values["before"])
    assert table.rows[0].format("before") == "not finite"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"rows": []}', "without a list `tables`"),
        ('{"version": 99, "tables": []}', "version 99"),
        ('[{"name": "x"}]', "table 0: expected an object with `name` and a list `rows`"),
        ('[{"name": "x", "rows": [3]}]', "table 0, row 0"),
        ('[{"name": "x", "rows": [{"metric": "m", "values": {"a": "b"}}]}]', "row 0, a: expected"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, content: str, message: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(EvaluationError, match=message.replace("`", ".")):
        load_evaluation(tmp_path)


def test_missing_tables_are_refused(tmp_path) -> None:
    with pytest.raises(EvaluationError, match="does not exist"):
        load_evaluation(tmp_path)


def test_lm_eval_results_are_read(tmp_path) -> None:
    path = tmp_path / "after.json"
    results = {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.12,
            "exact_match_stderr,strict-match": 0.01,
        },
        "piqa": {"acc,none": 0.61},
    }
    path.write_text(json.dumps({"results": results}))
    assert load_lm_eval(path) == {"gsm8k exact_match (strict-match)": 0.12, "piqa acc": 0.61}
    path.write_text("[]")
    with pytest.raises(EvaluationError, match="not a results file"):
        load_lm_eval(path)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4312, "%", "43.1 %"),
        (412003.0, "", "412,003"),
        (1.6042, "", "1.604"),
        (0.0, "", "0.000"),
        (2.5e-5, "", "2.50e-05"),
        (math.nan, "%", "not finite"),
    ],
)
def test_values_for_people(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_lm_eval_files_with_nan_and_missing_values(tmp_path) -> None:
    from xtoken.evaluation import lm_eval_table

    path = tmp_path / "after.json"
    path.write_text(
        '{"results": {"t": {"alias": "t", "acc,none": NaN, "acc_stderr,none": "N/A", '
        '"ppl,none": null, "f,x": 0.5}}, "higher_is_better": {"t": {"acc": true, "ppl": false}}, '
        '"n-samples": {"t": {"original": 9, "effective": 3}}}'
    )
    values = load_lm_eval(path)
    assert set(values) == {"t acc", "t ppl", "t f (x)"}
    assert math.isnan(values["t acc"])
    assert math.isnan(values["t ppl"])
    table = lm_eval_table({"after": path})
    assert [row.better for row in table.rows] == ["higher", "lower", "neither"]
    assert table.rows[0].format("after") == "not finite"
    assert table.note == "t: 3 of 9 examples."
    path.write_text('{"results": {"t": 1}}')
    with pytest.raises(EvaluationError, match="not a results file"):
        load_lm_eval(path)


def test_prompts_are_whole_words_of_the_texts_beginnings() -> None:
    from xtoken.evaluation.samples import first_prompts

    long = "狐狸 jumps over the lazy dog " * 20
    (prompt,) = first_prompts([long], 1, size=41)
    assert long.startswith(prompt + " ")
    assert len(prompt.encode()) <= 41
    assert first_prompts(["one two three four", ""], 3) == ["one two"]
    with pytest.raises(EvaluationError, match="--prompts"):
        first_prompts(["", "x"], 1)
