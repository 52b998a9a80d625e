"""Byte-level BPE: train, encode, decode, special tokens, chat template and exchange formats.

Read in this order: byte_alphabet, patterns, naive, tokenizer, chat, inspect, hugging_face; then
how it is made fast: compiling, scan, pieces, merging, encoding, counting, merge_training.
"""

from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.tokenizer import Tokenizer
from firsthand.llm.tokenizer.training import train

__all__ = ["Tokenizer", "TokenizerError", "train"]
