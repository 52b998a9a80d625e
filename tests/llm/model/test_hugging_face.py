"""transformers is the oracle: the same weights give the same logits and gradients."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.hugging_face import ExchangeError, load_hugging_face, save_llama
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
VOCABULARY, SEQ = 61, 19
PARTS = [REFERENCE, FAST]


def _tokens(seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (3, SEQ), generator=torch.Generator().manual_seed(seed))


def _llama(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "attn_implementation": "eager",
    }
    torch.manual_seed(0)
    return _spread(transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | changes)))


def _gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=48,
        n_layer=3,
        n_head=4,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    return _spread(transformers.GPT2LMHeadModel(config))


def _spread(model: Any) -> Any:
    """Every weight, norms and biases too, away from its first value, so that none is unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


LLAMAS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa-untied": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "mqa-bias-head": {
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 10,
    },
}


@pytest.mark.parametrize("parts", PARTS, ids=["reference", "fast"])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("name", LLAMAS)
def test_llama_logits_and_gradients(tmp_path: Path, name: str, pairing: str, parts: Any) -> None:
    theirs = _llama(**LLAMAS[name])
    theirs.save_pretrained(tmp_path)
    ours = load_hugging_face(tmp_path, parts, pairing=pairing)
    _same_logits(ours, theirs)
    _same_gradients(ours, theirs, tmp_path / "gradients")


@pytest.mark.parametrize("parts", PARTS, ids=["reference", "fast"])
def test_gpt2_logits_and_gradients(tmp_path: Path, parts: Any) -> None:
    theirs = _gpt2()
    theirs.save_pretrained(tmp_path)
    ours = load_hugging_face(tmp_path, parts)
    assert ours.config.feed_forward == "gelu"
    _same_logits(ours, theirs)
    _backward(ours)
    _backward(theirs)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for layer in range(3):
        ours_name, theirs_name = f"blocks.{layer}.", f"transformer.h.{layer}."
        for one, other in (
            ("attention.qkv", "attn.c_attn"),
            ("attention.output", "attn.c_proj"),
            ("feed_forward.up", "mlp.c_fc"),
            ("feed_forward.down", "mlp.c_proj"),
        ):
            right = gradients[f"{theirs_name}{other}.weight"].T
            _close(_gradient(ours, f"{ours_name}{one}.weight"), right)
            right = gradients[f"{theirs_name}{other}.bias"]
            _close(_gradient(ours, f"{ours_name}{one}.bias"), right)
        for one, other in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            for kind in ("weight", "bias"):
                right = gradients[f"{theirs_name}{other}.{kind}"]
                _close(_gradient(ours, f"{ours_name}{one}.{kind}"), right)
    _close(_gradient(ours, "embedding.weight"), gradients["transformer.wte.weight"])
    _close(_gradient(ours, "position_embedding.weight"), gradients["transformer.wpe.weight"])


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2, "d_head": 10, "tied": False}])
def test_saved_models_load_in_transformers(
    tmp_path: Path, pairing: Any, changes: dict[str, Any]
) -> None:
    config = ModelConfig(
        vocab_size=VOCABULARY,
        context=32,
        d_model=48,
        n_layers=2,
        n_heads=4,
        d_ff=40,
        rope_base=777.0,
        rope_pairing=pairing,
        norm_eps=1e-4,
        **changes,
    )
    ours = Transformer(config, FAST)
    _spread(ours)
    save_llama(ours, tmp_path, {"bos_token_id": 3})
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    _same_logits(ours, theirs)
    assert theirs.config.bos_token_id == 3
    again = load_hugging_face(tmp_path, FAST, pairing=pairing)
    resolved = replace(config, n_kv_heads=config.kv_heads, d_head=config.head_width)
    assert again.config == resolved
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name


def test_the_dtype_is_kept(tmp_path: Path) -> None:
    _llama().to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_hugging_face(tmp_path, FAST)
    assert model.embedding.weight.dtype == torch.bfloat16
    save_llama(model, tmp_path / "again")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    assert loaded.dtype == torch.bfloat16


def test_shards_with_an_index(tmp_path: Path) -> None:
    theirs = _llama()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    _same_logits(load_hugging_face(tmp_path, FAST), theirs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "alibi"}, "no positions = 'alibi'"),
        ({"qk_norm": True, "window": 4}, "no window = 4, qk_norm = True"),
        ({"feed_forward": "relu2"}, "feed_forward"),
    ],
)
def test_what_llama_cannot_hold(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = ModelConfig(vocab_size=9, d_model=8, n_layers=1, n_heads=2, **changes)
    with pytest.raises(ExchangeError, match=words):
        save_llama(Transformer(config, FAST), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match=r"config\.json"):
        load_hugging_face(tmp_path, FAST)
    config = ModelConfig(vocab_size=9, d_model=8, n_layers=2, n_heads=2, d_ff=6)
    save_llama(Transformer(config, FAST), tmp_path)
    weights_path, record_path = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights, record = load_file(weights_path), json.loads(record_path.read_text(encoding="utf-8"))

    def fails(words: str, changed_weights: dict[str, Tensor], **changes: Any) -> None:
        save_file(changed_weights, weights_path)
        record_path.write_text(json.dumps(record | changes), encoding="utf-8")
        with pytest.raises(ExchangeError, match=words):
            load_hugging_face(tmp_path, FAST)

    missing = {k: v for k, v in weights.items() if "layers.1.mlp.up" not in k}
    fails("there is no weight 'model.layers.1.mlp.up_proj.weight'", missing)
    fails("without a place in the model: extra", {**weights, "extra": torch.zeros(2)})
    wrong = {**weights, "model.norm.weight": torch.ones(7)}
    fails(r"final_norm.weight is \(7,\), not \(8,\)", wrong)
    fails("model_type is 'mamba'", weights, model_type="mamba")
    fails("hidden_act is 'gelu'", weights, hidden_act="gelu")
    fails("is not supported", weights, rope_scaling={"rope_type": "llama3", "factor": 8.0})
    fails("lm_head", weights, tie_word_embeddings=False)
    fails("d_model 8 does not|does not divide", weights, num_key_value_heads=3)
    save_file(weights, weights_path)
    weights_path.write_bytes(weights_path.read_bytes()[:-10])
    record_path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ExchangeError, match=r"model\.safetensors"):
        load_hugging_face(tmp_path, FAST)
    record_path.write_text("[1", encoding="utf-8")
    with pytest.raises(ExchangeError, match=r"config\.json"):
        load_hugging_face(tmp_path, FAST)


def _same_logits(ours: Transformer, theirs: Any) -> None:
    with torch.no_grad():
        one, other = ours(_tokens()), theirs(_tokens()).logits
    assert other.std() > 0.1
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def _same_gradients(ours: Transformer, theirs: Any, folder: Path) -> None:
    """By saving our gradients as if they were weights: the names and layouts of Llama."""
    _backward(ours)
    _backward(theirs)
    carrier = Transformer(ours.config, FAST)
    with torch.no_grad():
        for name, parameter in carrier.named_parameters():
            parameter.copy_(_gradient(ours, name))
    save_llama(carrier, folder)
    got = load_file(folder / "model.safetensors")
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert set(got) == set(expected)
    for name, gradient in got.items():
        _close(gradient, expected[name])


def _backward(model: Any) -> None:
    tokens, targets = _tokens(), _tokens(1)
    model.zero_grad(set_to_none=True)
    if isinstance(model, Transformer):
        model.loss(tokens, targets).mean.backward()
    else:
        logits = model(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()


def _gradient(model: Transformer, name: str) -> Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None, name
    return gradient


def _close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
