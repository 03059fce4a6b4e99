"""Text to tensors. Knows no model."""

from .errors import DataError, OptionError
from .tokenizer import Tokenizer

__all__ = ["DataError", "OptionError", "Tokenizer"]
