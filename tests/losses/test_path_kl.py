"""Path-KL: exact on numerals, zero for one process, equal to its definition on random tokens."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_vocab import FakeVocabulary, roles
from losses.helpers import Case, make_case, make_chunks, run, run_reference
from xtoken.losses import Direct, PathKL
from xtoken.losses import reference_path as reference
from xtoken.losses.paths import NONE, Paths
from xtoken.projection import Projection
from xtoken.projection.rules import role_targets

DIGITS = [b"0", b"1", b"2"]
SPLIT = FakeVocabulary([*DIGITS, b",", b";"])
WHOLE = FakeVocabulary([*DIGITS, *(a + b for a, b in product(DIGITS, DIGITS)), b",", b";"])


def random_rows(generator: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def numeral(v: int) -> list[int]:
    """The digits of a whole numeral's id."""
    return [int(chr(c)) for c in WHOLE.token_bytes(v)]


def spelt_log_probs(first: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """log P of each whole token when one spells it: a digit, then another or the end."""
    first, after = first.log_softmax(-1), after.log_softmax(-1)
    found = []
    for v in range(len(WHOLE)):
        if v >= 12:
            found.append(first[v - 9])
        elif len(numeral(v)) == 1:
            found.append(first[v] + after[v, 3:].logsumexp(-1))
        else:
            found.append(first[numeral(v)[0]] + after[tuple(numeral(v))])
    return torch.stack(found)


@pytest.mark.parametrize("finer", ["teacher", "student"])
def test_the_expected_sum_is_the_exact_kl_over_numerals(finer):
    """Over texts drawn from the teacher, whichever side spells digits, to 1e-10."""
    generator = torch.Generator().manual_seed(0)
    first, after = random_rows(generator, 1, 5)[0], random_rows(generator, 3, 5)
    whole = random_rows(generator, 1, 14)[0]
    spelt, direct = spelt_log_probs(first, after), whole.log_softmax(-1)
    student, teacher = (WHOLE, SPLIT) if finer == "teacher" else (SPLIT, WHOLE)
    target, other = (spelt, direct) if finer == "teacher" else (direct, spelt)
    loss = PathKL(Projection.build(student, teacher), student, teacher)
    total = 0.0
    for v in range(14):
        ids = [v - 9] if v >= 12 else numeral(v)
        rows = [first, *(after[d] if d < 3 else first for d in ids)]
        split_rows = torch.stack([*rows, first])
        whole_rows = torch.stack([whole, whole, whole])
        split_target = torch.tensor([*ids, 3, -1])
        whole_target = torch.tensor([v, 12, -1])
        sides = [([(0, 1)], whole_target, whole_rows), ([(0, len(ids))], split_target, split_rows)]
        if finer == "student":
            sides.reverse()
        chunks = make_chunks(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
        value = loss(sides[0][2], sides[1][2], chunks).total
        total += float(target[v].exp()) * float(value)
    expected = float((target.exp() * (target - other)).sum())
    assert total == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("finer", ["teacher", "student"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_two_models_of_one_process_have_no_loss(finer, temperature):
    """A student that says numerals whole with the probabilities that the teacher spells."""
    generator = torch.Generator().manual_seed(1)
    first, after = random_rows(generator, 1, 5)[0], random_rows(generator, 3, 5)
    whole = spelt_log_probs(first, after)
    student, teacher = (WHOLE, SPLIT) if finer == "teacher" else (SPLIT, WHOLE)
    loss = PathKL(Projection.build(student, teacher), student, teacher, temperature=temperature)
    # "12," then "0;": after "12" and after "0" the next token is drawn anew.
    split_rows = torch.stack([first, after[1], first, first, after[0], first])
    split_rows[2, :3] = -50.0  # a number has two digits at most
    ends = after[0].clone()
    whole_rows = torch.stack([whole, whole, whole, whole])
    whole_rows[1, :12] = -50.0
    whole_rows[1, 12:] = split_rows[2, 3:]
    whole_rows[3, :12] = -50.0  # "0" has ended
    whole_rows[3, 12:] = ends[3:]
    split_target = torch.tensor([1, 2, 3, 0, 4, -1])
    whole_target = torch.tensor([3 + 3 * 1 + 2, 12, 0, 13])
    pairs = [(0, 2), (2, 1), (3, 1), (4, 1)], [(0, 1), (1, 1), (2, 1), (3, 1)]
    sides = [(pairs[1], whole_target, whole_rows), (pairs[0], split_target, split_rows)]
    if finer == "student":
        sides.reverse()
    chunks = make_chunks(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    result = loss(sides[0][2], sides[1][2], chunks)
    assert abs(float(result.total)) < 1e-6
    assert float(result.count) == 4
    # 12: after "1"; 0: after "0", which could have gone on. Nothing after "," and ";".
    assert float(result.metrics["depths"][0]) == 2


def test_equal_vocabularies_give_the_direct_kl():
    vocab = FakeVocabulary([b"1", b"2", b"12", b"a", None, roles("eos"), b"1"])
    projection = Projection.build(vocab, vocab)
    case = make_case(projection)
    target = torch.tensor([0, 1, 2, 3, 5, 6, 0, 2, 1, 3, -1])
    pairs = [(r, 1) for r in range(10)]
    chunks = make_chunks(pairs, pairs, target, torch.cat([target, target[:2]]))
    case = Case(case.student, case.teacher, chunks, projection)
    for direction in ("teacher_to_student", "student_to_teacher", "jsd"):
        expected, gradient = run(Direct(7, vocab.is_missing, direction=direction), case)
        result, mine = run(PathKL(projection, vocab, vocab, direction=direction), case)
        torch.testing.assert_close(result.total, expected.total)
        torch.testing.assert_close(mine, gradient)


def test_what_has_ended_does_not_go_on():
    """After the whole "0" the teacher's digits no longer count at the next root."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = random_rows(generator, 3, 14), random_rows(generator, 3, 5)
    loss = PathKL(Projection.build(WHOLE, SPLIT), WHOLE, SPLIT)
    pairs = [(0, 1), (1, 1)]
    chunks = make_chunks(pairs, pairs, torch.tensor([0, 12, -1]), torch.tensor([0, 3, -1]))
    second = chunks.select(torch.tensor([1]))
    before = loss(student, teacher, second).total
    teacher[1, :3] += 5.0
    torch.testing.assert_close(loss(student, teacher, second).total, before)
    # The first chunk's "ends here or goes on" still reads them.
    first = chunks.select(torch.tensor([0]))
    assert float(loss(student, teacher, first).metrics["depths"][0]) == 1
    changed = loss(student, teacher, first).total
    teacher[1, :3] -= 5.0
    assert not torch.isclose(changed, loss(student, teacher, first).total)
    # With another token before, digits count.
    other = make_chunks(pairs, pairs, torch.tensor([13, 12, -1]), torch.tensor([4, 3, -1]))
    second = other.select(torch.tensor([1]))
    before = loss(student, teacher, second).total
    teacher[1, :3] += 5.0
    assert not torch.isclose(loss(student, teacher, second).total, before)


def test_chunks_of_different_root_events_are_left_out_and_reported():
    student = FakeVocabulary([b"a", b"ab", b"b", b"c"])
    teacher = FakeVocabulary([b"a", b"b", b"bc", b"c", b"abc"])
    loss = PathKL(Projection.build(student, teacher), student, teacher)
    generator = torch.Generator().manual_seed(3)
    # "abc" as student a + b + c (its own spelling is ab + c), the teacher's one token.
    chunks = make_chunks(
        [(0, 3), (3, 1)], [(0, 1), (1, 1)], torch.tensor([0, 2, 3, 2, -1]), torch.tensor([4, 1, -1])
    )
    assert loss.student_paths.root_split.tolist() == [0, 1, 1, 3, 0]
    result = loss(random_rows(generator, 5, 4), random_rows(generator, 3, 5), chunks)
    left_out = result.metrics["left_out"]
    # Its event is that of "ab" -> (a, b): "a", as the realised "a" is.
    assert (float(left_out[0]), float(left_out[1])) == (0.0, 2.0)
    strange = make_chunks([(0, 1)], [(0, 1)], torch.tensor([2]), torch.tensor([3]))
    result = loss(random_rows(generator, 1, 4), random_rows(generator, 1, 5), strange)
    assert float(result.count) == loss.count(strange) == 0
    assert float(result.metrics["left_out"][0]) == 1.0


def test_the_row_after_the_last_token_may_be_missing():
    """A cache that ends with the chunk: the last depth is left out."""
    loss = PathKL(Projection.build(WHOLE, SPLIT), WHOLE, SPLIT)
    generator = torch.Generator().manual_seed(4)
    student, teacher = random_rows(generator, 2, 14), random_rows(generator, 2, 5)
    chunks = make_chunks([(0, 1)], [(0, 1)], torch.tensor([1, -1]), torch.tensor([1, -1]))
    assert float(loss(student, teacher, chunks).metrics["depths"][0]) == 1
    short = make_chunks([(0, 1)], [(0, 1)], torch.tensor([1]), torch.tensor([1]))
    assert float(loss(student[:1], teacher[:1], short).metrics["depths"][0]) == 0


TEXTS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=7, unique=True)


def vocabulary(texts: list[str], extra: list[object]) -> FakeVocabulary:
    tokens = [b"a", b"b", *(t.encode() for t in texts if len(t) > 1), *extra]
    return FakeVocabulary(tokens)


@given(student=TEXTS, teacher=TEXTS)
@settings(max_examples=60, deadline=None)
def test_events_are_those_of_the_definition(student, teacher):
    whole = vocabulary(student, [roles("eos"), b"ab"])
    split = vocabulary(teacher, [roles("pad"), roles("eos"), None])
    projection = Projection.build(whole, split)
    to_split, _ = role_targets(whole, split)
    pairs = {v: int(u) for v, u in enumerate(to_split) if u >= 0}
    slow = reference.Paths(whole, split, pairs, projection.student_masked)
    fast = Paths(whole, split, projection.student_masked)
    assert {v: p for v, p in enumerate(fast.path) if p} == slow.path
    assert fast.root_split.tolist() == [slow.event((), u) for u in range(len(split))]
    nodes = {path[:d] for path in slow.path.values() for d in range(1, len(path) + 1)}
    for a in nodes:
        events = [slow.event(a, u) for u in range(len(split))]
        if fast.active_nodes(a, len(a))[-1:] != [a]:
            assert set(events) == {reference.REST}
            continue
        found = fast.node(a)
        assert found.ends == slow.ends(a)
        names: dict[int, int] = {}
        mine = np.full(len(split), found.events)
        mine[found.split] = found.split_event
        for u, event in enumerate(events):
            expected = found.events if event == reference.REST else mine[event]
            assert mine[u] == expected
            names.setdefault(event, int(mine[u]))
        assert len(set(names.values())) == len(names)
        for v in range(len(whole)):
            event = slow.whole_event(a, v)
            place = np.flatnonzero(found.whole == v)
            assert len(place) == (event is not None)
            if event is not None:
                assert found.whole_event[place[0]] == (
                    found.events if event == reference.REST else mine[event]
                )
    assert NONE == reference.REST


def spans(vocab: FakeVocabulary, text: bytes, choose) -> list[int]:
    """Cut a text into tokens at random, so that spellings are not only the tokenizer's own."""
    ids, at = [], 0
    while at < len(text):
        fitting = [i for i in range(len(vocab)) if vocab.token_bytes(i)
                   and text.startswith(vocab.token_bytes(i), at)]  # fmt: skip
        ids.append(choose(fitting))
        at += len(vocab.token_bytes(ids[-1]))
    return ids


def cut(counts_of: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Chunks (start, count) of two lists of token lengths with equal sums."""
    ends = [np.cumsum(lengths).tolist() for lengths in counts_of]
    common = sorted(set(ends[0]) & set(ends[1]))
    found = []
    for side in ends:
        stops = [side.index(end) + 1 for end in common]
        found.append([(a, b - a) for a, b in zip([0, *stops[:-1]], stops, strict=True)])
    return found


def compare_with_reference(vocabs, ids, seed: int, **how) -> None:
    """Value and gradient on realised ids, with random logits."""
    projection = Projection.build(*vocabs)
    lengths = [[len(v.token_bytes(i)) for i in tokens]
               for v, tokens in zip(vocabs, ids, strict=True)]  # fmt: skip
    pairs = cut(lengths)
    generator = torch.Generator().manual_seed(seed)
    logits = [random_rows(generator, len(tokens) + 1, len(v) + 1) * 2
              for v, tokens in zip(vocabs, ids, strict=True)]  # fmt: skip
    chunks = make_chunks(*pairs, *(torch.tensor([*map(int, tokens), -1]) for tokens in ids))
    case = Case(logits[0], logits[1], chunks, projection)
    tables = []
    for whole, split, masked in (
        (vocabs[0], vocabs[1], projection.student_masked),
        (vocabs[1], vocabs[0], projection.teacher_masked),
    ):
        targets, _ = role_targets(whole, split)
        pairing = {v: int(u) for v, u in enumerate(targets) if u >= 0}
        tables.append(reference.Paths(whole, split, pairing, masked))
    expected, expected_gradient = run_reference(reference.path_kl, case, *tables, **how)
    result, gradient = run(PathKL(projection, *vocabs, **how), case)
    torch.testing.assert_close(result.total, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


@given(
    student=TEXTS,
    teacher=TEXTS,
    text=st.text("ab", min_size=1, max_size=12),
    canonical=st.booleans(),
    direction=st.sampled_from(["teacher_to_student", "student_to_teacher", "jsd"]),
    temperature=st.sampled_from([1.0, 1.7]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_value_and_gradient_on_random_tokens(
    student, teacher, text, canonical, direction, temperature, seed
):
    vocabs = vocabulary(student, [roles("eos")]), vocabulary(teacher, [roles("eos"), None])
    rng = np.random.default_rng(seed)
    data = text.encode()
    ids = [list(v.tokenize_bytes([data])[0]) if canonical else spans(v, data, rng.choice)
           for v in vocabs]  # fmt: skip
    compare_with_reference(vocabs, ids, seed, direction=direction, temperature=temperature)


def test_realised_tokens_that_the_root_leaves_out():
    """After "1" has ended, the teacher's "23" could have gone on from it, and is realised."""
    student = FakeVocabulary([b"1", b"2", b"3", b"123", b","])
    teacher = FakeVocabulary([b"1", b"2", b"3", b"23", b","])
    for seed in range(3):
        compare_with_reference((student, teacher), [[0, 1, 2, 4], [0, 3, 4]], seed)
        compare_with_reference((teacher, student), [[0, 3, 4], [0, 1, 2, 4]], seed)
