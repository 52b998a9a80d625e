"""Byte-level BPE: train, encode, decode, special tokens, chat template and exchange formats.

Read in this order: byte_alphabet, patterns, naive, tokenizer, streaming, chat, inspect, formats,
hugging_face, tiktoken_export; then how it is made fast: compiling, scan, batch_scan, pieces,
merging, encoding, counting, pair_heap, merge_training, training.
"""

from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.tokenizer import Tokenizer
from firsthand.llm.tokenizer.training import train

__all__ = ["Tokenizer", "TokenizerError", "train"]
