from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from fake_vocab import FakeVocabulary, roles
from xtoken.errors import ProjectionError
from xtoken.projection import Projection, import_pt
from xtoken.projection.store import TENSORS


@pytest.fixture
def student() -> FakeVocabulary:
    return FakeVocabulary([b"a", b"b", b"ab", b"ba", roles("eos"), None], name="small-student")


@pytest.fixture
def teacher() -> FakeVocabulary:
    return FakeVocabulary(
        [roles("eos", "pad"), b"b", b"a", b"aab", roles("special")], name="big-teacher", rows=8
    )


@pytest.fixture
def projection(student: FakeVocabulary, teacher: FakeVocabulary) -> Projection:
    return Projection.build(student, teacher)


def same(ours: Projection, theirs: Projection) -> None:
    for name in TENSORS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    assert ours.rules == theirs.rules
    assert ours.stats() == theirs.stats()
    for token in range(ours.student_size):
        assert ours.explain(token) == theirs.explain(token)
    for token in range(ours.teacher_size):
        assert ours.explain_teacher(token) == theirs.explain_teacher(token)


# --------------------------------------------------------------------------- save and load


def test_round_trip(tmp_path: Path, projection, student, teacher) -> None:
    path = tmp_path / "new folder" / "w.safetensors"
    projection.save(path)
    same(Projection.load(path), projection)
    same(Projection.load(path, student, teacher), projection)
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path, projection) -> None:
    for name in ("one", "two"):
        projection.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_other_tokenizers_are_refused_by_name(tmp_path: Path, projection, student, teacher) -> None:
    path = tmp_path / "w.safetensors"
    projection.save(path)
    other = FakeVocabulary([b"a", b"b", b"ab", b"bb", roles("eos"), None], name="another")
    with pytest.raises(ProjectionError) as caught:
        Projection.load(path, other, teacher)
    message = str(caught.value)
    assert "small-student" in message
    assert "another" in message
    assert "first id that differs is 3: b'ba' there, b'bb' here" in message
    assert student.fingerprint[:12] in message
    assert str(path) in message
    with pytest.raises(ProjectionError, match="teacher tokenizer 'big-teacher'"):
        Projection.load(path, student, student)
    shorter = FakeVocabulary([b"a", b"b"], name="shorter")
    with pytest.raises(ProjectionError, match=r"6 ids.*2 ids"):
        Projection.load(path, student_vocab=shorter)
    no_roles = FakeVocabulary([b"a", b"b", b"ab", b"ba", roles("bos"), None], name="roles")
    with pytest.raises(ProjectionError, match="the roles differ"):
        Projection.load(path, student_vocab=no_roles)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, projection, keep: float) -> None:
    path = tmp_path / "w.safetensors"
    projection.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ProjectionError, match="truncated"):
        Projection.load(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path, projection) -> None:
    path = tmp_path / "w.safetensors"
    projection.save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ProjectionError, match="checksum"):
        Projection.load(path)


def rewritten(path: Path, change) -> None:
    """Read a projection file, let `change(header, tensors)` edit it, write it back."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    header, tensors = json.loads(metadata["xtoken"]), load(data)
    change(header, tensors)
    path.write_bytes(save(tensors, metadata={"xtoken": json.dumps(header)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, _: header.update(version=99), "version 99; this xtoken reads version 1"),
        (lambda header, _: header.update(format="something"), "no projection"),
        (lambda header, _: header.pop("student"), "lack 'student'"),
        (lambda _, tensors: tensors.pop("weights"), "lacks weights"),
        (
            lambda _, tensors: tensors.update(exact=tensors["exact"].astype(np.int32)),
            "exact is int32, expected bool",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, projection, change, message) -> None:
    path = tmp_path / "w.safetensors"
    projection.save(path)
    rewritten(path, change)
    with pytest.raises(ProjectionError, match=message):
        Projection.load(path)


def test_a_model_file_or_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"weight": np.zeros(3, np.float32)}))
    with pytest.raises(ProjectionError, match="no projection"):
        Projection.load(path)
    with pytest.raises(ProjectionError, match="There is no projection file"):
        Projection.load(tmp_path / "absent")
    with pytest.raises(ProjectionError, match="There is no projection file"):
        Projection.load(tmp_path)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, projection, monkeypatch) -> None:
    path = tmp_path / "w.safetensors"
    projection.save(path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProjectionError, match="No space left on device"):
        projection.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_save_leaves_no_temporary_file(tmp_path, projection, monkeypatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        projection.save(tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, projection) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectionError, match="can't be written to"):
        projection.save(tmp_path / "file" / "w.safetensors")


def test_a_saved_file_has_ordinary_permissions(tmp_path: Path, projection) -> None:
    projection.save(tmp_path / "w.safetensors")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o666 & ~mask


def test_bare_arrays_cannot_be_saved(tmp_path: Path) -> None:
    bare = Projection.from_arrays([[0]], [[1.0]], [True], teacher_size=1)
    with pytest.raises(ProjectionError, match="bare arrays"):
        bare.save(tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- .pt files

#                a->2       b->1       ab->2,1        ba->1,2    eos->0   missing
PAIRS = {(0, 2): 1.0, (1, 1): 1.0, (2, 2): 0.9, (2, 1): 0.1, (3, 1): 1.0, (4, 0): 1.0}


def dense(extra_rows: int = 0) -> dict:
    indices = torch.full((6 + extra_rows, 3), -1)
    likelihoods = torch.zeros(6 + extra_rows, 3)
    filled: dict[int, int] = {}
    for (source, target), weight in PAIRS.items():
        slot = filled.get(source, 0)
        indices[source, slot], likelihoods[source, slot] = target, weight
        filled[source] = slot + 1
    return {"indices": indices, "likelihoods": likelihoods}


@pytest.mark.parametrize(
    "content",
    [
        dense(),
        dense(extra_rows=2),
        PAIRS,
        {f"{source}_{target}": weight for (source, target), weight in PAIRS.items()},
        {source: {t: w for (s, t), w in PAIRS.items() if s == source} for source in range(5)},
    ],
    ids=["dense", "dense with padded rows", "pairs", "text pairs", "nested"],
)
def test_every_public_form_reads_alike(tmp_path: Path, student, teacher, content) -> None:
    torch.save(content, tmp_path / "w.pt")
    projection = import_pt(tmp_path / "w.pt", student, teacher)
    entries = {
        (source, int(target)): float(weight)
        for source in range(6)
        for target, weight in zip(
            projection.indices[source], projection.weights[source], strict=True
        )
        if target >= 0
    }
    assert entries == pytest.approx(PAIRS)
    # b"ba" has weight one on b"b" and is not exact; the flags come from the bytes.
    assert projection.exact.tolist() == [True, True, False, False, True, False]
    assert projection.teacher_fold.tolist() == [0, 1, 2, 2, -1]
    assert projection.student_masked.tolist() == [False] * 5 + [True]
    projection.save(tmp_path / "w.safetensors")
    same(Projection.load(tmp_path / "w.safetensors", student, teacher), projection)


def test_the_scale_trick_is_read_as_it_stands(tmp_path: Path, student, teacher) -> None:
    # Public code: last column 0.2 on whatever id is there, rows divided by their sum; exact rows
    # pinned to one afterwards. Slots of weight 0 carry arbitrary ids.
    content = dense()
    content["indices"][content["indices"] < 0] = 3
    content["likelihoods"][:, -1] = 0.2
    content["likelihoods"] /= content["likelihoods"].sum(dim=1, keepdim=True)
    for token in (0, 1):
        content["likelihoods"][token] = torch.tensor([1.0, 0.0, 0.0])
    torch.save({**content, "enable_scale_trick": True}, tmp_path / "w.pt")
    projection = import_pt(tmp_path / "w.pt", student, teacher)
    assert projection.rules["scale_trick"] is True
    assert projection.exact.tolist() == [True, True, False, False, False, False]
    assert projection.indices[2].tolist() == [2, 3, 1]
    np.testing.assert_allclose(projection.weights[2], [0.9 / 1.2, 0.2 / 1.2, 0.1 / 1.2], rtol=1e-6)
    assert projection.teacher_reached[3]


def test_row_sums_change_only_on_request(tmp_path: Path, student, teacher) -> None:
    torch.save({**PAIRS, (2, 2): 0.3, (2, 1): 0.1}, tmp_path / "w.pt")
    as_is = import_pt(tmp_path / "w.pt", student, teacher)
    np.testing.assert_allclose(as_is.weights[2], [0.3, 0.1], rtol=1e-6)
    divided = import_pt(tmp_path / "w.pt", student, teacher, normalize=True)
    np.testing.assert_allclose(divided.weights[2], [0.75, 0.25], rtol=1e-6)


def test_padded_targets_are_dropped_and_counted(tmp_path: Path, student, teacher) -> None:
    torch.save({**PAIRS, (2, 6): 0.5}, tmp_path / "w.pt")
    projection = import_pt(tmp_path / "w.pt", student, teacher)
    assert projection.rules["dropped_padded_targets"] == 1
    assert projection.indices.max() < len(teacher)


class Runs:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("content", [Runs(), {"indices": Runs(), "likelihoods": torch.zeros(1)}])
def test_a_file_that_asks_for_code_is_refused(
    tmp_path: Path, student, teacher, content, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.pt")
    with pytest.raises(ProjectionError, match="asks for Python code"):
        import_pt("w.pt", student, teacher)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected a dict"),
        ({}, "empty dict"),
        ({"weight": torch.zeros(2)}, "key 'weight'"),
        ({(1, 2, 3): 0.5}, r"key \(1, 2, 3\)"),
        ({(0, 1): "much"}, "'much' where a weight belongs"),
        ({(0, -2): 1.0}, "id -2; ids start at 0"),
        ({(0, 1): float("nan")}, "not finite"),
        (
            {**PAIRS, (1, 9): 1.0},
            "teacher id 9, but the teacher 'big-teacher' has 5 ids",
        ),
        ({**PAIRS, (5000, 1): 1.0}, "student id 5,000, but the student 'small-student' has 6 ids"),
        ({"indices": torch.zeros(6, 2), "likelihoods": torch.zeros(6, 2)}, "of float32"),
        ({"indices": torch.zeros(6, 2).long(), "likelihoods": torch.zeros(6, 3)}, r"\(6, 3\)"),
        ({"indices": torch.zeros(4, 2).long(), "likelihoods": torch.zeros(4, 2)}, "has 4 rows"),
        ({"indices": 3, "likelihoods": 4}, "no tensors"),
        ({(0, 1): 1.0, (1, 2): 1.0}, "maps only 0% of the 2 tokens"),
    ],
)
def test_what_is_no_projection_is_refused(tmp_path, student, teacher, content, message) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ProjectionError, match=message):
        import_pt(tmp_path / "w.pt", student, teacher)


def test_damaged_pt_files_are_refused(tmp_path: Path, student, teacher) -> None:
    path = tmp_path / "w.pt"
    torch.save(dense(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ProjectionError, match="truncated or damaged"):
        import_pt(path, student, teacher)
    path.write_bytes(b"hello")
    with pytest.raises(ProjectionError, match="damaged"):
        import_pt(path, student, teacher)
    with pytest.raises(ProjectionError, match="There is no file"):
        import_pt(tmp_path / "absent.pt", student, teacher)
