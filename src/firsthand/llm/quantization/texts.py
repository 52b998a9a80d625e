"""The text that a model is quantized with, and the text that it is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firsthand.llm.data.documents import Document
from firsthand.llm.data.loading import TokenStream, open_split
from firsthand.llm.data.preparation import END_OF_TEXT
from firsthand.llm.data.problems import SourceError
from firsthand.llm.data.sources import Source
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.pretraining import SHARDS
from firsthand.llm.training.trained import Trained

# Of a text that has no splits, the last fifth is measured on.
_MEASURED_SHARE = 5


def calibration_and_validation(
    trained: Trained, source: Source | None, tokens: int
) -> tuple[TokenStream, TokenStream]:
    """Two texts that share no token.

    A run has splits of its own: calibration on the training split unless a source is given,
    measures on the validation split always. For any other model both come from the source, its
    beginning and its last fifth.

    Args:
        trained: the model with its tokenizer.
        source: of text; needed where there is no run.
        tokens: the most that are read from the source.
    Raises:
        QuantizationError: too little text, or no source.
        DataError: text or shards that cannot be read.
    """
    tokenizer, run = trained.tokenizer, trained.run
    if run is not None:
        place = Path(run.config.data.folder or run.folder / SHARDS)
        validation = open_split(place, "validation", tokenizer_hash=tokenizer.hash)
        if not len(validation):
            raise QuantizationError(f"{place}: the validation split is empty")
        if source is not None:
            return gathered(source, tokenizer, tokens), validation
        return open_split(place, "train", tokenizer_hash=tokenizer.hash), validation
    if source is None:
        raise QuantizationError("a model without a run needs a text to calibrate with")
    everything = gathered(source, tokenizer, tokens)
    ids = np.empty(len(everything), np.uint32)
    everything.read(0, ids)
    cut = len(ids) - len(ids) // _MEASURED_SHARE
    if cut == len(ids):
        raise QuantizationError(
            f"the text has {len(ids)} tokens, too few to calibrate on some and measure on others"
        )
    end = everything.end_of_text
    return TokenStream([ids[:cut]], end), TokenStream([ids[cut:]], end)


def gathered(source: Source, tokenizer: Tokenizer, tokens: int) -> TokenStream:
    """The first documents of a source as tokens, each ended by an end-of-text.

    Args:
        source: of documents.
        tokenizer: of the model.
        tokens: reading stops behind the document that reaches so many.
    Raises:
        SourceError: a document that cannot be read.
        QuantizationError: the tokenizer has no end-of-text.
    """
    end = tokenizer.special_tokens.get(END_OF_TEXT)
    if end is None:
        raise QuantizationError(f"the tokenizer has no {END_OF_TEXT} token to stand between texts")
    parts, count = [], 0
    for item in source.documents():
        if not isinstance(item, Document):
            raise SourceError(str(item))
        if not item.size:
            continue
        for piece in item.pieces():
            parts.append(tokenizer.encode_array(piece))
            count += len(parts[-1])
            if count >= tokens:
                break
        parts.append(np.array([end], np.uint32))
        if count >= tokens:
            break
    return TokenStream(parts, end)
