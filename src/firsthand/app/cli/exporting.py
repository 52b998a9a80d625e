"""`firsthand export RUN --format gguf|huggingface`: a model for other programs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from firsthand.app.cli.options import open_model
from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.model.transformer import Transformer
    from firsthand.llm.tokenizer import Tokenizer

FORMATS = ("gguf", "huggingface")
TYPES = ("f16", "q8_0", "bf16", "f32")
# What a folder in Hugging Face's format has of ours, and may be replaced with it.
_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def export_model(place: Path, form: str, kind: str | None, out: Path | None, step: int) -> Path:
    """Write the model of a run, of a folder in Hugging Face's format or of a GGUF file.

    Args:
        place: of the model.
        form: one of FORMATS.
        kind: of a GGUF file's matrices, one of TYPES; None is the first.
        out: None is a name that tells the format, in the run.
        step: of the checkpoint; 0 is the newest.
    Returns:
        The file or folder written.
    Raises:
        FirsthandError: whatever stands in the way.
    """
    if form not in FORMATS:
        raise FirsthandError(f"--format is {' or '.join(FORMATS)}; not {form}.")
    if kind is not None and form != "gguf":
        raise FirsthandError("--type goes with --format gguf; weights keep their type otherwise.")
    kind = kind or TYPES[0]
    if kind not in TYPES:
        raise FirsthandError(f"--type is one of {', '.join(TYPES)}; not {kind}.")
    home = place if place.is_dir() else place.parent
    with one_sentence():
        from firsthand.llm.quantization.artefact import is_quantized

        if is_quantized(place):
            raise FirsthandError(f"{place} is quantized; export the run that it came from.")
        if form == "gguf":
            from firsthand.llm.quantization.gguf_export import save_gguf

            path = out or home / f"model-{kind}.gguf"
            if path.is_dir():
                raise FirsthandError(f"{path} is a folder; --out names a file here.")
            trained = open_model(place, "cpu", step)
            path.parent.mkdir(parents=True, exist_ok=True)
            name = place.resolve().stem
            save_gguf(trained.model, path, trained.tokenizer, kind=kind, name=name)
        else:
            path = out or home / "huggingface"
            _require_free(path)
            trained = open_model(place, "cpu", step)
            _save_folder(trained.model, trained.tokenizer, path)
    return path


def _require_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FirsthandError(f"{folder} is a file; --out names a folder here.")
    if folder.is_dir() and (others := {path.name for path in folder.iterdir()} - _FILES):
        raise FirsthandError(
            f"{folder} holds other files, such as {min(others)}; name another folder with --out."
        )


def _save_folder(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Whole or not at all: a kill leaves nothing that looks like a model."""
    from firsthand.llm.generation.prompts import END_OF_TEXT
    from firsthand.llm.model.hugging_face import save_llama
    from firsthand.llm.tokenizer.chat import CHAT_TOKENS, END, ChatTemplate
    from firsthand.llm.tokenizer.hugging_face import write_hugging_face

    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    specials = tokenizer.special_tokens
    end = next((text for text in (END_OF_TEXT, END) if text in specials), None)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    if all(token in specials for token in CHAT_TOKENS):
        settings["chat_template"] = ChatTemplate.jinja()
    identity = None if end is None else specials[end]
    try:
        save_llama(model, draft, {"bos_token_id": identity, "eos_token_id": identity})
        write_hugging_face(tokenizer, draft / "tokenizer.json")
        text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
        (draft / "tokenizer_config.json").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
