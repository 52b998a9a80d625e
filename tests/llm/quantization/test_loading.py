"""Any model by its folder, and the text to quantize it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from firsthand.llm.data.loading import TokenStream
from firsthand.llm.data.problems import DataError
from firsthand.llm.data.sources import LocalFiles, Texts
from firsthand.llm.model.hugging_face import save_llama
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.artefact import save_quantized
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.loading import load_any
from firsthand.llm.quantization.quantizing import quantize
from firsthand.llm.quantization.settings import QuantizationSettings
from firsthand.llm.quantization.texts import calibration_and_validation, gathered
from firsthand.llm.quantization.transformer import quantized_transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.hugging_face import write_hugging_face
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.trained import Trained

MakeModel = Callable[..., Transformer]
Draw = Callable[[int, int], NDArray[np.int64]]
BYTES = Tokenizer([], special_tokens=("<|endoftext|>",))


def _texts(*texts: str) -> Texts:
    return Texts("test", lambda: texts)


def _ids(stream: TokenStream) -> list[int]:
    out = np.empty(len(stream), np.int64)
    stream.read(0, out)
    return [int(token) for token in out]


def test_a_quantized_folder_without_a_run(
    tmp_path: Path, model_of: MakeModel, tokens_of: Draw
) -> None:
    tokens = tokens_of(2, 20)
    inputs = torch.from_numpy(tokens)
    quantized = quantize(model_of("plain"), QuantizationSettings(), tokens).noted(step=7)
    save_quantized(tmp_path / "int8", quantized, BYTES)
    found = load_any(tmp_path / "int8", FAST)
    assert (found.run, found.step, found.tokenizer.hash) == (None, 7, BYTES.hash)
    expected = quantized_transformer(quantized, FAST)
    with torch.no_grad():
        assert torch.equal(found.model(inputs), expected(inputs))
    assert load_any(tmp_path / "int8", FAST, step=7).step == 7
    with pytest.raises(QuantizationError, match="quantized from step 7, there is no step 8"):
        load_any(tmp_path / "int8", FAST, step=8)


def test_other_folders_as_before(tmp_path: Path, model_of: MakeModel) -> None:
    with pytest.raises(TrainingError, match="no such run"):
        load_any(tmp_path / "nowhere", FAST)
    model = model_of("plain", vocab_size=257)
    save_llama(model, tmp_path)
    write_hugging_face(BYTES, tmp_path / "tokenizer.json")
    found = load_any(tmp_path, FAST)
    assert torch.equal(found.model.embedding.weight, model.embedding.weight)


def test_documents_end_with_an_end_of_text() -> None:
    end = BYTES.special_tokens["<|endoftext|>"]
    stream = gathered(_texts("ab", "", "c", "defg", "never"), BYTES, 6)
    spelt = [BYTES.token_bytes(i) for i in _ids(stream) if i != end]
    assert b"".join(spelt) == b"abcdefg"
    assert [place for place, i in enumerate(_ids(stream)) if i == end] == [2, 4, 9]
    assert stream.end_of_text == end
    assert len(gathered(_texts(), BYTES, 6)) == 0


def test_a_text_for_both_shares_no_token(model_of: MakeModel) -> None:
    trained = Trained(model_of("plain"), BYTES)
    source = _texts("abcdefghijklmnopqrstuvwxyz")
    calibration, validation = calibration_and_validation(trained, source, 1000)
    whole = gathered(source, BYTES, 1000)
    assert len(validation) == 27 // 5
    assert _ids(calibration) + _ids(validation) == _ids(whole)


def test_texts_that_will_not_do(tmp_path: Path, model_of: MakeModel) -> None:
    trained = Trained(model_of("plain"), BYTES)
    with pytest.raises(QuantizationError, match="needs a text"):
        calibration_and_validation(trained, None, 100)
    with pytest.raises(QuantizationError, match="has 3 tokens, too few"):
        calibration_and_validation(trained, _texts("ab"), 100)
    with pytest.raises(QuantizationError, match="to stand between texts"):
        gathered(_texts("ab"), Tokenizer([]), 100)
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe no UTF-8")
    with pytest.raises(DataError, match=r"bad\.txt"):
        gathered(LocalFiles([tmp_path]), BYTES, 100)

    (tmp_path / "bad.txt").unlink()
    (tmp_path / "web.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(DataError, match=r"web\.jsonl, line 2"):
        gathered(LocalFiles([tmp_path]), BYTES, 100)
