"""The output head of real architectures, reached: hidden states give the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

from xtoken.output_head import HeadUnreachableError, ModelHead

SIZE = 101
SHAPE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GPT2 = {
    "vocab_size": SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS = {
    "llama": SHAPE,
    "llama tied": {**SHAPE, "tie_word_embeddings": True},
    "gemma2": {**SHAPE, "head_dim": 16, "final_logit_softcapping": 30.0},
    "cohere": {**SHAPE, "logit_scale": 0.0625},
    "granite": {**SHAPE, "logits_scaling": 4.0},
    "qwen3": {**SHAPE, "head_dim": 16},
    "phi": SHAPE,
    "gpt2": GPT2,
}


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **MODELS[name])
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_are_the_models_logits(name: str) -> None:
    model = tiny(name)
    # Large logits, so that a forgotten soft cap or scale would show.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50.0)
    ids = torch.randint(3, SIZE, (2, 7), generator=torch.Generator().manual_seed(1))
    source = ModelHead(model).run(lambda: model(input_ids=ids))
    whole_NV = model(input_ids=ids).logits.reshape(-1, SIZE)
    rows_R = torch.tensor([0, 3, 13])
    torch.testing.assert_close(source.open(rows_R, SIZE, keep=False), whole_NV[rows_R])
    assert source.inputs[0].requires_grad, "the states carry the model's graph"


def test_a_model_keeps_its_mode_and_its_hooks_go() -> None:
    model = tiny("llama").train()
    head = ModelHead(model)
    assert model.training
    head.run(lambda: model(input_ids=torch.tensor([[3, 4]])))
    assert model(input_ids=torch.tensor([[3, 4, 5]])).logits.shape == (1, 3, SIZE)


def test_logits_that_are_more_than_the_head_says_are_not_reached() -> None:
    model = tiny("llama")
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = 25.0 * torch.tanh(output.logits / 25.0)
        return output

    model.forward = forward
    with pytest.raises(HeadUnreachableError, match="not those of its output head"):
        ModelHead(model)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gemma2", "final_logit_softcapping", 0.0),
        ("gemma2", "final_logit_softcapping", -30.0),
        ("cohere", "logit_scale", -1.0),
    ],
)
def test_a_cap_or_scale_that_can_be_none_is_no_crash(name: str, key: str, value: float) -> None:
    model = tiny(name)
    setattr(model.config, key, value)
    with pytest.raises(HeadUnreachableError, match=r"is (0\.0|-30\.0|-1\.0); expected a positive"):
        ModelHead(model)


def test_a_head_that_is_no_linear_layer_is_not_reached() -> None:
    model = tiny("llama")

    class Adapted(torch.nn.Linear):
        pass

    model.set_output_embeddings(Adapted(32, SIZE))
    with pytest.raises(HeadUnreachableError, match="Adapted, expected a plain linear layer"):
        ModelHead(model)
