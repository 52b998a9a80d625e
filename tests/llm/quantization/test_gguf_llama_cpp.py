"""llama.cpp is the oracle: it loads our files, and gives our logits, texts and ids.

llama-cpp-python is not in the test extra: it compiles llama.cpp for ten minutes or more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from firsthand.llm.generation.decoding import generate
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.gguf_export import save_gguf
from firsthand.llm.quantization.gguf_import import load_gguf
from firsthand.llm.tokenizer import Tokenizer, train
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, ChatTemplate

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="needs llama.cpp: pip install 'llama-cpp-python>=0.3.16' (it compiles)"
)
pytest.importorskip("gguf")
torch.set_num_threads(1)

END = "<|endoftext|>"
TEXT = "The quick brown fox jumps over the lazy dog; naïve café, 12 dogs, 日本語\n" * 9
# Embeddings of this size give logits of the deviation 0.8; those of a small trained model have 1.5.
SMALL = ModelConfig(
    vocab_size=340, context=256, d_model=64, n_layers=3, n_heads=4, d_ff=96, embedding_std=0.1
)
SHAPES: dict[str, dict[str, Any]] = {
    "mha-half": {},
    "mha-interleaved": {"rope_pairing": "interleaved"},
    "gqa-untied": {"n_kv_heads": 2, "tied": False, "norm_eps": 1e-4, "rope_base": 777.0},
    "mqa-bias-wide": {"n_kv_heads": 1, "bias": True, "d_head": 32, "rope_pairing": "interleaved"},
    "qk-norm-half": {"n_kv_heads": 2, "qk_norm": True},
    "qk-norm-interleaved": {"qk_norm": True, "rope_pairing": "interleaved"},
}


def model_of(config: ModelConfig) -> Transformer:
    model = Transformer(config, FAST)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Any]:
    """llama.cpp with a file; its cache in float32 (type 0), as ours is."""
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=1,
        n_threads_batch=1,
        type_k=0,
        type_v=0,
        logits_all=True,
        verbose=False,
        **options,
    )
    try:
        yield llama
    finally:
        llama.close()


def their_logits(path: Path, ids: list[int]) -> Tensor:
    with opened(path) as llama:
        llama.eval(ids)
        return torch.from_numpy(llama.scores[: len(ids)].copy())


def our_logits(model: Transformer, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]))[0]
    return logits


def some_ids(count: int) -> list[int]:
    generator = torch.Generator().manual_seed(5)
    ids: list[int] = torch.randint(SMALL.vocab_size, (count,), generator=generator).tolist()
    return ids


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_function(tmp_path: Path, name: str) -> None:
    model, path, ids = model_of(replace(SMALL, **SHAPES[name])), tmp_path / "m.gguf", some_ids(90)
    save_gguf(model, path, kind="f32")
    expected = our_logits(model, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(their_logits(path, ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_f16_agrees_to_a_hundredth(tmp_path: Path, name: str) -> None:
    model, path, ids = model_of(replace(SMALL, **SHAPES[name])), tmp_path / "m.gguf", some_ids(200)
    save_gguf(model, path, kind="f16")
    expected, got = our_logits(model, ids), their_logits(path, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-2)
    # Where the best token leads by more than both may err, it is the same.
    best = expected.topk(2).values
    clear = best[:, 0] - best[:, 1] > 2e-2
    assert clear.float().mean() > 0.8
    assert torch.equal(got.argmax(-1)[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize(("kind", "bound"), [("bf16", 0.02), ("q8_0", 0.06)])
def test_the_narrower_types(tmp_path: Path, kind: str, bound: float) -> None:
    # llama.cpp rounds the activations of these products too, so there is a distance to our own
    # decoder with the same weights; wrong scales or rows would be as far as the deviation, 1.
    path, ids = tmp_path / "m.gguf", some_ids(90)
    save_gguf(model_of(SMALL), path, kind=kind)
    ours = our_logits(load_gguf(path, FAST).model.eval(), ids)
    distance = (their_logits(path, ids) - ours).square().mean().sqrt()
    assert float(distance) < bound * float(ours.std())


def test_greedy_texts_agree(tmp_path: Path) -> None:
    model, path, prompt = model_of(SMALL), tmp_path / "m.gguf", some_ids(7)
    save_gguf(model, path, kind="f32")
    sampling = Sampling(temperature=0.0, max_new_tokens=60, seed=0)
    ours = generate(model, [prompt], sampling)[0].ids
    theirs: list[int] = []
    with opened(path) as llama:
        for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            theirs.append(token)
            if len(theirs) == len(ours):
                break
    assert len(ours) == 60
    assert theirs == list(ours)


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tokenizer, Any]]:
    """Any two bytes of a piece are a token: every place where the pattern cuts shows in the ids."""
    pairs = [(left, right) for left in range(256) for right in range(256)]
    tokenizer = Tokenizer(pairs, pattern=request.param, special_tokens=(*CHAT_TOKENS, END))
    path = tmp_path_factory.mktemp("vocabulary") / "m.gguf"
    shape = {"d_model": 2, "n_heads": 1, "n_layers": 1, "d_ff": 2, "context": 256}
    config = ModelConfig(vocab_size=tokenizer.vocabulary_size, **shape)  # type: ignore[arg-type]
    save_gguf(Transformer(config, FAST), path, tokenizer)
    with opened(path, vocab_only=True) as llama:
        yield tokenizer, llama


def test_texts_give_the_same_ids(vocabulary: tuple[Tokenizer, Any]) -> None:
    tokenizer, llama = vocabulary
    alphabet = "aZ é19\n\r\t '.,!?\u00a0\u2028日本\U0001f642\u0301sStTrReElLvV-_½Ⅷ٣"
    chance = random.Random(0)
    texts = [TEXT, "I'll we'RE don't it's 12345 x²\n\n  \t y  ", "<|end|> in a text"]
    texts += ["".join(chance.choices(alphabet, k=chance.randint(1, 14))) for _ in range(3000)]
    for text in texts:
        got = llama.tokenize(text.encode(), add_bos=True, special=False)
        assert got == tokenizer.encode(text), repr(text)
        assert llama.detokenize(got) == text.encode()


def test_ends_and_chats(vocabulary: tuple[Tokenizer, Any]) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    tokenizer, llama = vocabulary
    assert llama.token_eos() == llama.token_bos() == tokenizer.special_tokens[END]
    messages: list[Any] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "How many dogs?\n"},
    ]
    formatter = Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], END, END)
    prompt = formatter(messages=messages).prompt
    ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
    assert ids == ChatTemplate(tokenizer).render(messages, ask=True).ids.tolist()


def test_a_trained_tokenizer(tmp_path: Path) -> None:
    tokenizer = train([TEXT], 340, pattern="gpt4", special_tokens=(END,))
    path = tmp_path / "m.gguf"
    save_gguf(model_of(replace(SMALL, vocab_size=tokenizer.vocabulary_size)), path, tokenizer)
    with opened(path, vocab_only=True) as llama:
        assert llama.tokenize(TEXT.encode(), add_bos=True) == tokenizer.encode(TEXT)
