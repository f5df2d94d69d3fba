import pytest
import torch

from xtoken.errors import ModelNotFoundError, UsageError, VocabularyError
from xtoken.models import load_causal_lm
from xtoken.teachers import LocalTeacher
from xtoken.vocab import Vocabulary

IDS = torch.tensor([[5, 17, 33, 40, 8]])
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def teacher(tiny_pair):
    return LocalTeacher.from_pretrained(tiny_pair[1], name="big")


def test_signal_is_the_models_logits_without_gradient(teacher, tiny_pair):
    logits = teacher.signal(IDS, MASK)
    assert not logits.requires_grad
    assert logits.shape == (1, 5, teacher.vocab.rows)
    assert len(teacher.vocab) == teacher.vocab.rows - 5, "padded rows are no tokens"
    torch.testing.assert_close(logits, load_causal_lm(tiny_pair[1])(IDS).logits)
    assert teacher.name == "big"


def test_only_reads(teacher):
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


@pytest.mark.parametrize("padding", [1, 3, 7])
def test_padding_on_either_side_changes_nothing(teacher, padding):
    plain = teacher.signal(IDS, MASK)
    pad, off = torch.zeros(1, padding, dtype=torch.long), torch.zeros(1, padding, dtype=torch.long)
    right = teacher.signal(torch.cat([IDS, pad], 1), torch.cat([MASK, off], 1))
    left = teacher.signal(torch.cat([pad, IDS], 1), torch.cat([off, MASK], 1))
    torch.testing.assert_close(right[:, :5], plain)
    torch.testing.assert_close(left[:, padding:], plain)


def test_the_students_autocast_does_not_decide_the_teachers_precision(teacher):
    plain = teacher.signal(IDS, MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = teacher.signal(IDS, MASK)
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, plain, rtol=0, atol=0)


def test_own_dtype(tiny_pair):
    teacher = LocalTeacher.from_pretrained(tiny_pair[1], dtype="bfloat16")
    assert teacher.signal(IDS, MASK).dtype == torch.bfloat16
    assert teacher.to("cpu").device.type == "cpu"


def test_sequences_beyond_the_models_positions(teacher):
    ids = torch.zeros(1, 257, dtype=torch.long)
    with pytest.raises(UsageError, match=r"at most 256 tokens.*teacher_max_length"):
        teacher.signal(ids, torch.ones_like(ids))


def test_a_tokenizer_of_another_model(tiny_pair):
    student, teacher = tiny_pair
    with pytest.raises(VocabularyError):
        LocalTeacher(load_causal_lm(teacher), Vocabulary.from_pretrained(student))
    with pytest.raises(ModelNotFoundError):
        LocalTeacher.from_pretrained(teacher, tokenizer="./nowhere")
