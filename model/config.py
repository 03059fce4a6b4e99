"""Table 1 of the paper: the numbers that fix an encoder.

Legend, here and in the whole package: L layers, d_h hidden size, J heads, E intermediate size,
|W| words of the vocabulary, |E| positions; B texts in a batch, n tokens in a text.
The paper writes a hidden state as a d_h × n matrix; this code holds it as (B, n, d_h).
"""

from dataclasses import dataclass, fields


class ModelError(ValueError):
    """A model, its configuration or its file cannot be used. The message is a sentence for the user."""


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder, in the paper's order.

    Raises ModelError where no encoder of that shape can exist.
    """

    num_layers: int = 12  # L
    hidden_size: int = 768  # d_h
    num_heads: int = 12  # J
    intermediate_size: int = 3072  # E
    vocab_size: int = 32005  # |W|
    max_positions: int = 514  # |E|: 512 tokens, and RoBERTa never uses the first two rows
    pad_id: int = 1
    activation: str = "gelu"  # equation (8) prints "relu"; the released weights were trained with exact GELU
    layer_norm_eps: float = 1e-5
    dropout: float = 0.1

    @classmethod
    def camembert(cls) -> "EncoderConfig":
        """The teacher's row of Table 1: camembert-base."""
        return cls()

    @classmethod
    def distilcamembert(cls) -> "EncoderConfig":
        """The student's row of Table 1: every other layer of camembert-base, and nothing else changed."""
        return cls(num_layers=6)

    @property
    def head_size(self) -> int:
        """d_h / J, the width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens. Positions are counted from pad_id + 1, so the rows up to pad_id are lost."""
        return self.max_positions - self.pad_id - 1

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise ModelError(f"{field.name} must be a whole number, not {value!r:.100}.")
                least = 0 if field.name == "pad_id" else 1
                if value < least:
                    raise ModelError(f"{field.name} is {value}; it must be at least {least}.")
        if self.hidden_size % self.num_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} cannot be shared out among {self.num_heads} heads: "
                "choose num_heads so that it divides hidden_size."
            )
        if self.pad_id >= self.vocab_size:
            raise ModelError(f"pad_id {self.pad_id} lies outside the vocabulary of {self.vocab_size} words.")
        if self.max_tokens < 1:
            raise ModelError(f"max_positions {self.max_positions} leaves no position after pad_id {self.pad_id}.")
        if self.activation not in ("gelu", "relu"):
            raise ModelError(f"activation {self.activation!r:.100} is unknown: it is 'gelu' (exact, by erf) or 'relu'.")
        for name, low, high in (("layer_norm_eps", 0.0, 1.0), ("dropout", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
                raise ModelError(f"{name} is {value!r:.100}; it must be a number from {low:g} to below {high:g}.")
