"""GGUF files: what is written is read by a plain decoder in float64, and comes back as it was."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.hugging_face import ExchangeError
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.gguf_export import save_gguf
from firsthand.llm.quantization.gguf_import import load_gguf

gguf = pytest.importorskip("gguf")
torch.set_num_threads(1)
Array = NDArray[np.float64]

SMALL = ModelConfig(
    vocab_size=41, context=24, d_model=32, n_layers=3, n_heads=4, d_ff=96, embedding_std=0.2
)
SHAPES: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa-untied": {"n_kv_heads": 2, "tied": False, "norm_eps": 1e-6, "rope_base": 777.0},
    "mqa-wide": {"n_kv_heads": 1, "d_head": 24, "bias": True},
    "qk-norm": {"n_kv_heads": 2, "qk_norm": True, "d_head": 16},
}


def model_of(config: ModelConfig, seed: int = 0) -> Transformer:
    """Norms and biases away from 1 and 0, so that none is unseen."""
    model = Transformer(config, FAST, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def resolved(config: ModelConfig) -> ModelConfig:
    """What a file tells of a config: no first weights, and nothing automatic."""
    return replace(
        config,
        n_kv_heads=config.kv_heads,
        d_head=config.head_width,
        d_ff=config.hidden_width,
        embedding_std=ModelConfig(vocab_size=1).embedding_std,
    )


# ---------------------------------------------------------------------- the oracle


def plain_logits(path: Path, ids: list[int]) -> Array:
    """The logits that a file describes, token by token in float64, (tokens, vocabulary).

    RoPE turns neighbours for "llama" and features half a head apart for "qwen3", as llama.cpp's
    table of its architectures says.
    """
    reader = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    name = values["general.architecture"]
    of = {key.removeprefix(f"{name}."): value for key, value in values.items()}
    w = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in reader.tensors
    }
    heads, shared = of["attention.head_count"], of["attention.head_count_kv"]
    width, eps = of["attention.key_length"], of["attention.layer_norm_rms_epsilon"]
    pairs = np.arange(width // 2)
    turns = np.arange(len(ids))[:, None] * of["rope.freq_base"] ** (-2.0 * pairs / width)
    first, second = (2 * pairs, 2 * pairs + 1) if name == "llama" else (pairs, pairs + width // 2)

    def norm(x: Array, weight: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[weight]

    def product(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def turned(x: Array) -> Array:
        y = np.empty_like(x)
        y[:, first] = x[:, first] * np.cos(turns) - x[:, second] * np.sin(turns)
        y[:, second] = x[:, first] * np.sin(turns) + x[:, second] * np.cos(turns)
        return y

    x = w["token_embd.weight"][ids]
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(of["block_count"]):
        b = f"blk.{layer}."
        h = norm(x, f"{b}attn_norm.weight")
        mixed = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            group = head // (heads // shared)
            kv = slice(group * width, (group + 1) * width)
            q, k = product(h, f"{b}attn_q")[:, own], product(h, f"{b}attn_k")[:, kv]
            if f"{b}attn_q_norm.weight" in w:
                q, k = norm(q, f"{b}attn_q_norm.weight"), norm(k, f"{b}attn_k_norm.weight")
            scores = turned(q) @ turned(k).T / np.sqrt(width) + future
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed.append(shares @ product(h, f"{b}attn_v")[:, kv])
        x = x + product(np.concatenate(mixed, -1), f"{b}attn_output")
        h = norm(x, f"{b}ffn_norm.weight")
        gate = product(h, f"{b}ffn_gate")
        x = x + product(gate / (1 + np.exp(-gate)) * product(h, f"{b}ffn_up"), f"{b}ffn_down")
    x = norm(x, "output_norm.weight")
    logits: Array = x @ w.get("output.weight", w["token_embd.weight"]).T
    return logits


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_file_describes_the_same_function(tmp_path: Path, name: str, pairing: Any) -> None:
    config = replace(SMALL, rope_pairing=pairing, **SHAPES[name])
    model, path = model_of(config), tmp_path / "model.gguf"
    save_gguf(model, path, kind="f32")
    ids = torch.randint(config.vocab_size, (17,), generator=torch.Generator().manual_seed(1))
    expected = plain_logits(path, ids.tolist())
    with torch.no_grad():
        logits = model(ids[None])[0].double().numpy()
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


# ---------------------------------------------------------------------- there and back


@given(
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1), (3, 1)]),
    layers=st.integers(1, 3),
    half_width=st.integers(1, 9),
    d_model=st.integers(1, 40),
    d_ff=st.integers(1, 50),
    tied=st.booleans(),
    extra=st.sampled_from(["", "bias", "qk_norm"]),
    pairings=st.tuples(*[st.sampled_from(["half", "interleaved"])] * 2),
)
@settings(max_examples=40)
def test_f32_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    heads: tuple[int, int],
    layers: int,
    half_width: int,
    d_model: int,
    d_ff: int,
    tied: bool,
    extra: str,
    pairings: tuple[Any, Any],
) -> None:
    config = ModelConfig(
        vocab_size=13,
        context=19,
        d_model=d_model,
        n_layers=layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        d_head=2 * half_width,
        d_ff=d_ff,
        tied=tied,
        norm_eps=3e-6,
        rope_pairing=pairings[0],
        bias=extra == "bias",
        qk_norm=extra == "qk_norm",
    )
    model, path = model_of(config), tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(model, path, kind="f32")
    there = load_gguf(path, FAST, pairing=pairings[1]).model
    assert there.config == replace(resolved(config), rope_pairing=pairings[1])
    save_gguf(there, path, kind="f32")
    back = load_gguf(path, FAST, pairing=pairings[0]).model
    weights = model.state_dict()
    assert back.state_dict().keys() == weights.keys()
    for name, weight in back.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_the_narrow_types_come_back_rounded(tmp_path: Path) -> None:
    model = model_of(replace(SMALL, tied=False))
    with torch.no_grad():
        model.get_parameter("output.weight")[3] = 0.0  # a block of zeros has the scale 0
    for kind in ("f16", "bf16", "q8_0"):
        path = tmp_path / f"{kind}.gguf"
        save_gguf(model, path, kind=kind)
        again = load_gguf(path, FAST, pairing="half").model.state_dict()
        for name, weight in model.state_dict().items():
            got = again[name]
            if weight.ndim == 1:
                assert torch.equal(got, weight), name
            elif kind == "f16":
                assert torch.equal(got, weight.half().float()), name
            elif kind == "bf16":
                assert torch.equal(got, weight.bfloat16().float()), name
            else:
                # Half a step of the grid, and 127 times what float16 rounds off the step.
                step = weight.view(-1, 32).abs().amax(1, keepdim=True) / 127
                bound = step * (0.5 + 127 * 2.0**-11) + 1e-6
                assert ((got - weight).view(-1, 32).abs() <= bound).all(), name
                assert (got != weight).any(), name


def test_sizes_and_types(tmp_path: Path) -> None:
    path = tmp_path / "a model.gguf"
    save_gguf(model_of(SMALL).to(torch.bfloat16), path, kind="q8_0")
    reader = gguf.GGUFReader(path)
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q8_0"}
    found = next(t for t in reader.tensors if t.name == "blk.0.ffn_down.weight")
    assert found.n_bytes == SMALL.d_model * SMALL.hidden_width // 32 * 34
    assert reader.fields["general.name"].contents() == "a model"
    assert reader.fields["general.file_type"].contents() == 7
    assert [p.name for p in tmp_path.iterdir()] == ["a model.gguf"]


# ---------------------------------------------------------------------- what cannot be written


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "alibi"}, "positions = 'alibi'"),
        ({"norm": "layer", "window": 4}, "norm = 'layer', window = 4"),
        ({"feed_forward": "relu2", "neighbours": 2}, "feed_forward = 'relu2', neighbours = 2"),
        ({"norm_placement": "post"}, "norm_placement = 'post'"),
        ({"qk_norm": True, "bias": True}, "bias = True beside qk_norm"),
    ],
)
def test_what_llama_cpp_lacks(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    model = Transformer(replace(SMALL, **changes), FAST)
    with pytest.raises(ExchangeError, match=words):
        save_gguf(model, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_rows_that_q8_0_cannot_divide(tmp_path: Path) -> None:
    model = Transformer(replace(SMALL, d_model=40, d_head=10, d_ff=64), FAST)
    with pytest.raises(ExchangeError, match=r"of 32 is d_model 40, n_heads · d_head 40; f16"):
        save_gguf(model, tmp_path / "model.gguf", kind="q8_0")
    with pytest.raises(ExchangeError, match=r"no type 'q4_0' here; there are f32, f16, bf16, q8_0"):
        save_gguf(model, tmp_path / "model.gguf", kind="q4_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (float("nan"), "f32", "blk.1.attn_k.weight has weights that are not finite"),
        (float("inf"), "q8_0", "blk.1.attn_k.weight has weights that are not finite"),
        (7e4, "f16", r"blk.1.attn_k.weight has a weight of magnitude 7e\+04, and f16 ends at"),
        (1e7, "q8_0", "q8_0 ends at 8.32e"),
        (3.4e38, "bf16", "bf16 ends at 3.39e"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, value: float, kind: str, words: str) -> None:
    model, path = model_of(SMALL), tmp_path / "model.gguf"
    save_gguf(model, path)
    before = path.read_bytes()
    with torch.no_grad():
        model.get_parameter("blocks.1.attention.qkv.weight")[SMALL.d_model + 2, 5] = value
    with pytest.raises(ExchangeError, match=words):
        save_gguf(model, path, kind=kind)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_the_largest_weights_that_fit(tmp_path: Path) -> None:
    model, path = model_of(SMALL), tmp_path / "model.gguf"
    for kind, value in (("f16", 65504.0), ("q8_0", 127 * 65504.0), ("bf16", 3.38e38)):
        with torch.no_grad():
            model.embedding.weight[1, 2] = value
        save_gguf(model, path, kind=kind)
        assert torch.isfinite(load_gguf(path, FAST).model.embedding.weight).all()


# ---------------------------------------------------------------------- what cannot be read


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("whole") / "model.gguf"
    save_gguf(model_of(replace(SMALL, n_layers=1)), path, kind="q8_0")
    return path.read_bytes()


def _fails(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ExchangeError, match=words) as caught:
        load_gguf(path, FAST)
    assert str(path) in str(caught.value)


@given(st.data())
@settings(max_examples=80)
def test_truncated_anywhere(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    # A file may end in zeros that only fill it up to a multiple of 32 bytes.
    end = data.draw(st.integers(0, len(whole) - 32))
    path = tmp_path_factory.mktemp("cut") / "model.gguf"
    _fails(path, whole[:end], "truncated or damaged|no GGUF file, or damaged")


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_head_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    changed = bytearray(whole)
    place = data.draw(st.integers(0, whole.rindex(b"output_norm.weight") + 60))
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flip") / "model.gguf"
    path.write_bytes(bytes(changed))
    try:
        load_gguf(path, FAST)
    except ExchangeError as error:
        message = str(error)
    else:
        message = f"{path} loads"
    assert str(path) in message


def test_another_kind_of_file(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "model.gguf"
    _fails(path, b"", "no GGUF file")
    _fails(path, b"a letter to nobody", "no GGUF file.*magic")
    _fails(path, whole[:4] + struct.pack("<I", 99) + whole[8:], "version")
    # A key "a" that says it is an array of 2^40 numbers, and nothing after it.
    endless = struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 4, 2**40)
    _fails(path, endless, "truncated or damaged: it ends at byte 49, and byte 53 is called for")
    with pytest.raises(FileNotFoundError):
        load_gguf(tmp_path / "missing.gguf", FAST)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "q8_0"), (np.inf, "q8_0"), (np.nan, "f16")])
def test_scales_and_values_that_are_not_finite(tmp_path: Path, value: float, kind: str) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(model_of(SMALL), path, kind=kind)
    content = bytearray(path.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    place = tensor.data_offset + (3 * 34 if kind == "q8_0" else 2 * 7)
    content[place : place + 2] = np.float16(value).tobytes()
    what = "a scale that is" if kind == "q8_0" else "values that are"
    _fails(path, bytes(content), rf"blk.1.ffn_up.weight has {what} not finite \({kind.upper()}\)")


def _written(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """A file of one block with other keys or tensors; F32 throughout."""
    source = path.with_name("source.gguf")
    save_gguf(model_of(replace(SMALL, n_layers=1)), source, kind="f32")
    reader = gguf.GGUFReader(source)
    keys = {
        key: (field.contents(), field.types[0])
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    change(keys, tensors)
    writer = gguf.GGUFWriter(path, keys.pop("general.architecture")[0])
    for key, (value, kind) in keys.items():
        writer.add_key_value(key, value, kind)
    for name, tensor in tensors.items():
        raw = gguf.GGMLQuantizationType.Q4_0 if tensor.dtype == np.uint8 else None
        writer.add_tensor(name, tensor, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


U32, F32, STRING = (gguf.GGUFValueType[name] for name in ("UINT32", "FLOAT32", "STRING"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.architecture", ("mamba", STRING), "architecture is 'mamba'; llama and qwen3"),
        ("llama.block_count", None, "llama.block_count is missing"),
        ("llama.block_count", (2, U32), "block_count is 2, but there are 1 blocks"),
        ("llama.block_count", (2**31, U32), "but there are 1 blocks"),
        ("llama.context_length", ("long", STRING), "context_length is 'long', not one number"),
        ("llama.attention.head_count", (0, U32), "head_count is 0, not one number of at least 1"),
        ("llama.attention.head_count_kv", (3, U32), "n_heads 4 does not divide"),
        ("llama.attention.value_length", (4, U32), "value_length is not the 8 features"),
        ("llama.attention.layer_norm_rms_epsilon", (float("nan"), F32), "no finite number"),
        ("llama.rope.freq_base", (0.5, F32), "rope_base above 1"),
        ("llama.rope.scaling.type", ("yarn", STRING), "scaling.type = 'yarn' is not supported"),
        ("llama.expert_count", (8, U32), "expert_count = 8 is not supported"),
        ("llama.attention.scale", (0.5, F32), "attention.scale = 0.5 is not supported"),
        ("llama.feed_forward_length", (64, U32), r"ffn_gate.weight is \(96, 32\), not \(64, 32\)"),
        ("qwen3.block_count", (1, U32), ""),
    ],
)
def test_keys_that_are_wrong(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = tmp_path / "model.gguf"

    def change(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        if value is None:
            del keys[key]
        else:
            keys[key] = value

    _written(path, change)
    if words:
        _fails(path, path.read_bytes(), words)
    else:  # of another architecture than the file's
        assert load_gguf(path, FAST).model.config.n_layers == 1


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("blk.0.attn_v.weight", None, "there is no tensor blk.0.attn_v.weight"),
        ("token_embd.weight", None, "vocab_size is at least 1"),
        ("rope_freqs.weight", np.ones(4, np.float32), "without a place in the model: rope_freqs"),
        ("output_norm.weight", np.ones(7, np.float32), r"output_norm.weight is \(7,\), not \(32,"),
        ("blk.0.attn_q.bias", np.ones(32, np.float32), "there is no tensor blk.0.attn_k.bias"),
        ("blk.0.attn_q.weight", np.zeros((32, 18), np.uint8), "attn_q.weight is Q4_0; F32, F16"),
    ],
)
def test_tensors_that_are_wrong(tmp_path: Path, name: str, tensor: Any, words: str) -> None:
    path = tmp_path / "model.gguf"

    def change(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor

    _written(path, change)
    _fails(path, path.read_bytes(), words)


def test_older_files_without_the_newer_keys(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    newer = ("attention.key_length", "attention.value_length", "vocab_size", "rope.freq_base")

    def change(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key in newer:
            del keys[f"llama.{key}"]

    _written(path, change)
    config = load_gguf(path, FAST, pairing="half").model.config
    assert config == resolved(replace(SMALL, n_layers=1))
