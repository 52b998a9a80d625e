"""`firsthand export`: a run for llama.cpp and for transformers, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.gguf_export import save_gguf
from firsthand.llm.quantization.gguf_import import load_gguf
from firsthand.llm.tokenizer import train
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, ChatTemplate
from firsthand.llm.training.trained import load_trained

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

TEXT = "the quick brown fox jumps over the lazy dog, 12 dogs\n" * 9
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model in it, `small.gguf`."""
    torch.set_num_threads(1)
    tokenizer = train([TEXT], 300, special_tokens=(*CHAT_TOKENS, "<|endoftext|>"))
    config = ModelConfig(
        vocab_size=tokenizer.vocabulary_size,
        context=32,
        d_model=32,
        n_layers=2,
        n_heads=2,
        d_ff=64,
        rope_pairing="interleaved",
        embedding_std=0.2,
    )
    save_gguf(Transformer(config, FAST), tmp_path / "small.gguf", tokenizer, kind="f32")
    return tmp_path


def test_from_format_to_format(firsthand: Command, place: Path) -> None:
    code, out, err = firsthand("export", "small.gguf", "--format", "huggingface", folder=place)
    assert (code, err) == (0, "")
    assert out.strip() == "Written: huggingface"
    code, out, _ = firsthand("export", "huggingface", "--format", "gguf", folder=place)
    assert code == 0
    assert out.strip() == "Written: huggingface/model-f16.gguf"
    again = ("export", "huggingface", "--format", "gguf", "--type", "f32", "-o", "new/b.gguf")
    assert firsthand(*again, folder=place)[0] == 0
    first, last = load_gguf(place / "small.gguf", FAST), load_gguf(place / "new/b.gguf", FAST)
    assert last.tokenizer == first.tokenizer
    for name, weight in first.model.state_dict().items():
        assert torch.equal(last.model.state_dict()[name], weight), name


def test_transformers_reads_the_folder(firsthand: Command, place: Path) -> None:
    export = ("export", "small.gguf", "--format", "huggingface", "-o", "there")
    assert firsthand(*export, folder=place)[0] == 0
    assert firsthand(*export, folder=place)[0] == 0  # the former export is replaced
    ours = load_trained(place / "there", FAST)
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "there").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "there")
    ids = ours.tokenizer.encode(TEXT)[:30]
    assert tokenizer(TEXT)["input_ids"][:30] == ids
    with torch.no_grad():
        expected, got = ours.model(torch.tensor([ids])), model(torch.tensor([ids])).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    messages = [{"role": "user", "content": "How many dogs?"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    rendered = ChatTemplate(ours.tokenizer).render(messages, ask=True)
    assert ours.tokenizer.encode(chat, "all") == rendered.ids.tolist()
    assert tokenizer.eos_token_id == ours.tokenizer.special_tokens["<|endoftext|>"]


def test_a_gguf_file_writes(firsthand: Command, place: Path) -> None:
    words = ("generate", "small.gguf", "the ", "--tokens", "5", "--seed", "1")
    code, out, err = firsthand(*words, folder=place)
    assert code == 0, err
    assert out.startswith("the ")
    bare = ModelConfig(vocab_size=9, d_model=8, n_heads=2, n_layers=1)
    save_gguf(Transformer(bare, FAST), place / "bare.gguf")
    code, _, err = firsthand("generate", "bare.gguf", "the ", folder=place)
    assert code == 1
    assert "only byte-level BPE" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("small.gguf", "--format", "onnx"), "--format is gguf or huggingface; not onnx"),
        (("small.gguf", "--format", "gguf", "--type", "q4"), "--type is one of f16, q8_0"),
        (("small.gguf", "--format", "huggingface", "--type", "f16"), "goes with --format gguf"),
        (("small.gguf", "--format", "gguf", "-o", "."), "is a folder; --out names a file"),
        (("small.gguf", "--format", "huggingface", "-o", "."), "other files, such as small.gguf"),
        (("small.gguf", "--format", "huggingface", "-o", "small.gguf"), "is a file; --out names"),
        (("missing", "--format", "gguf"), "missing: there is no such run"),
        (("missing.gguf", "--format", "gguf"), "missing.gguf: No such file"),
        (("state.json", "--type", "f16"), "go with --format gguf or huggingface"),
        ((".",), "Progress goes into a file, e.g. state.json; the model of a run"),
    ],
)
def test_what_stands_in_the_way(
    firsthand: Command, place: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = firsthand("export", *words, folder=place)
    assert code == 1
    assert message in err
    assert [path.name for path in place.iterdir()] == ["small.gguf"]
