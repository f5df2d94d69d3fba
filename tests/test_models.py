import json
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch

from xtoken.errors import ModelNotFoundError, UsageError, XTokenError
from xtoken.models import context_length, load_causal_lm, output_head_rows
from xtoken.vocab import Vocabulary


@pytest.fixture
def copy(tiny_pair, tmp_path):
    """A directory of the tiny student that a test may break."""
    return Path(shutil.copytree(tiny_pair[0], tmp_path / "model"))


def refused(error, name, **options):
    start = time.monotonic()
    with pytest.raises(error) as caught:
        load_causal_lm(name, **options)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert str(name) in message
    return message


# ------------------------------------------------------------------ what loads


def test_a_directory_loads_in_evaluation_mode_with_its_own_dtype(tiny_pair):
    model = load_causal_lm(tiny_pair[0])
    assert not model.training
    assert model.dtype == torch.float32
    assert context_length(model) == 256
    assert load_causal_lm(tiny_pair[0], dtype="bfloat16").dtype == torch.bfloat16


def test_head_rows_are_the_width_of_the_logits_padded_rows_included(tiny_pair):
    for folder, padded in zip(tiny_pair, (0, 5), strict=True):
        model = load_causal_lm(folder)
        rows = output_head_rows(model)
        assert rows == model(torch.tensor([[1, 2]])).logits.shape[-1]
        assert rows == len(Vocabulary.from_pretrained(folder)) + padded


def test_an_adapter_directory_loads_with_its_base(tiny_pair, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(load_causal_lm(tiny_pair[0]), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    loaded = load_causal_lm(tmp_path / "adapter")
    torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)
    assert output_head_rows(adapted) == output_head_rows(loaded)


def test_a_gguf_file_is_dequantised_and_can_be_saved(tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    for name in (path, path.parent):
        model = load_causal_lm(name)
        assert output_head_rows(model) == 20
        model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    model.save_pretrained(tmp_path / "saved")
    again = load_causal_lm(tmp_path / "saved")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def write_tiny_gguf(path):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    generator = np.random.default_rng(0)
    V, D, F, heads = 20, 32, 64, 4
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // heads)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(97 + i) for i in range(V)])
    writer.add_token_types([1] * V)
    writer.add_token_merges(["a b"])
    shapes = {
        "token_embd.weight": (V, D),
        "output_norm.weight": (D,),
        "output.weight": (V, D),
        "blk.0.attn_norm.weight": (D,),
        "blk.0.ffn_norm.weight": (D,),
        "blk.0.ffn_gate.weight": (F, D),
        "blk.0.ffn_up.weight": (F, D),
        "blk.0.ffn_down.weight": (D, F),
    }
    shapes |= {f"blk.0.attn_{part}.weight": (D, D) for part in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        writer.add_tensor(name, generator.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ------------------------------------------------------------------ what is not there


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/dir", "a/b/c", "nowhere.gguf", "nowhere/"])
def test_paths_that_do_not_exist_are_refused_at_once(name):
    assert "There is no directory" in refused(ModelNotFoundError, name)


def test_a_hub_name_that_can_not_be_resolved_says_why(monkeypatch):
    assert "offline" in refused(ModelNotFoundError, "nobody/nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    assert "no route to the hub" in refused(ModelNotFoundError, "nobody/nothing")


def no_network(*args, **kwargs):
    raise ConnectionError("no route to the hub")


def test_directories_without_a_model(tmp_path, copy):
    assert "no config.json" in refused(ModelNotFoundError, tmp_path)
    (copy / "model.safetensors").unlink()
    assert "has no weights" in refused(ModelNotFoundError, copy)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "holds 2 .gguf files" in refused(ModelNotFoundError, tmp_path)
    assert "is a file" in refused(ModelNotFoundError, copy / "config.json")


# ------------------------------------------------------------------ what is damaged or unsafe


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_weights_are_refused_and_never_opened(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    marker = tmp_path / "code-was-run"
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(marker)))
    message = refused(XTokenError, copy)
    assert "pickled" in message
    assert "save_pretrained" in message, "says how to convert them"
    assert not marker.exists()
    pickle.loads((copy / "pytorch_model.bin").read_bytes())
    assert marker.exists(), "the file would have run code"


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(copy, keep):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refused(XTokenError, copy)
    assert "model.safetensors is truncated or damaged" in message


def test_missing_shard_and_damaged_index(copy):
    index = copy / "model.safetensors.index.json"
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    index.write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    assert "lacks model-2.safetensors" in refused(XTokenError, copy)
    index.write_text("{")
    assert "is damaged" in refused(XTokenError, copy)


def test_missing_weights_are_not_left_random(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.mlp.up_proj.weight" in refused(XTokenError, copy)


def test_damaged_config_and_gguf(copy, tmp_path):
    (copy / "config.json").write_text("{")
    assert "config.json" in refused(XTokenError, copy)
    (tmp_path / "x.gguf").write_bytes(b"GGUF nothing")
    assert "can't load a causal language model" in refused(XTokenError, tmp_path / "x.gguf")


@pytest.mark.slow
def test_a_vocabulary_only_gguf_is_no_model(asset_dir):
    path = asset_dir("gguf") / "ggml-vocab-gpt-2.gguf"
    with pytest.raises(XTokenError, match="ggml-vocab-gpt-2"):
        load_causal_lm(path)


# ------------------------------------------------------------------ settings


def test_settings_that_can_not_be_had(tiny_pair, tmp_path):
    folder = tiny_pair[0]
    with pytest.raises(UsageError, match="dtype is 'fp16'; expected one of auto"):
        load_causal_lm(folder, dtype="fp16")
    with pytest.raises(UsageError, match="attn_implementation is 'nonsense'"):
        load_causal_lm(folder, attn_implementation="nonsense")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(UsageError, match="GGUF file"):
        load_causal_lm(tmp_path / "x.gguf", quantization="4bit")


def test_quantization_names_the_missing_package(tiny_pair, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(UsageError, match="pip install bitsandbytes"):
        load_causal_lm(tiny_pair[0], quantization="4bit")
    with pytest.raises(UsageError, match="expected one of 4bit, 8bit"):
        load_causal_lm(tiny_pair[0], quantization="2bit")


def test_remote_code_is_not_run_unasked(copy):
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}
    (copy / "config.json").write_text(json.dumps(config))
    assert "trust_remote_code: true" in refused(UsageError, copy)
