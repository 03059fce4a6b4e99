"""Text to tensors. Knows no model."""

from .cli import DataError, OptionError
from .tokenizer import Tokenizer

__all__ = ["DataError", "OptionError", "Tokenizer"]
