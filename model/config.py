"""Table 1 of the paper: the sizes that fix an encoder, and equation (9), the number of parameters they give.

Legend, here and in the whole package: L layers, d_h hidden size, J heads, E intermediate size,
|W| vocabulary size, |E| maximum number of positions; B sequences in a batch, n tokens in a sequence.
The paper writes a hidden state as a d_h × n matrix; this code holds it as (B, n, d_h).
"""

from dataclasses import dataclass, fields


class ModelError(ValueError):
    """A model, its configuration or its file cannot be used. The message is a sentence for the user."""


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder, in the order of Table 1.

    Raises ModelError for sizes that no encoder can have.
    """

    num_layers: int = 12  # L
    hidden_size: int = 768  # d_h
    num_heads: int = 12  # J
    intermediate_size: int = 3072  # E
    vocab_size: int = 32005  # |W|
    max_positions: int = 514  # |E|: 512 tokens; RoBERTa never uses the first two rows
    pad_id: int = 1
    activation: str = "gelu"  # equation (8) prints ReLU; the released weights were trained with exact GELU
    layer_norm_eps: float = 1e-5
    dropout: float = 0.1

    @classmethod
    def camembert(cls) -> "EncoderConfig":
        """The teacher's row of Table 1: camembert-base."""
        return cls()

    @classmethod
    def distilcamembert(cls) -> "EncoderConfig":
        """The student's row of Table 1: half the layers of camembert-base, everything else unchanged."""
        return cls(num_layers=6)

    @property
    def max_tokens(self) -> int:
        """The longest sequence in tokens. Positions start at pad_id + 1, so the rows up to pad_id are unused."""
        return self.max_positions - self.pad_id - 1

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise ModelError(f"{field.name} must be an integer, not {value!r:.100}.")
                least = 0 if field.name == "pad_id" else 1
                if value < least:
                    raise ModelError(f"{field.name} is {value}; it must be at least {least}.")
        if self.hidden_size % self.num_heads:
            raise ModelError(f"hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads}.")
        if self.pad_id >= self.vocab_size:
            raise ModelError(f"pad_id {self.pad_id} lies outside the vocabulary of {self.vocab_size} tokens.")
        if self.max_tokens < 1:
            raise ModelError(f"max_positions {self.max_positions} leaves no position after pad_id {self.pad_id}.")
        if self.activation not in ("gelu", "relu"):
            raise ModelError(f"activation must be 'gelu' (exact, by erf) or 'relu', not {self.activation!r:.100}.")
        for name, low, high in (("layer_norm_eps", 0.0, 1.0), ("dropout", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
                raise ModelError(f"{name} is {value!r:.100}; it must be a number from {low:g} to below {high:g}.")


def count_layer_parameters(config: EncoderConfig) -> int:
    """The factor of L in equation (9): 4 d_h² + 2 d_h E + 9 d_h + E.

    4 d_h²: W^Q, W^K, W^V, W^out. 2 d_h E: W^feed, W^forward. 9 d_h: the biases b^Q, b^K, b^V, b^out, b^forward (5)
    and the weights and biases of two LayerNorms (4). E: b^feed.
    """
    d, e = config.hidden_size, config.intermediate_size
    return 4 * d**2 + 2 * d * e + 9 * d + e


def count_parameters(config: EncoderConfig) -> int:
    """Equation (9), section 2.  p = L(4 d_h² + 2 d_h E + 9 d_h + E) + d_h(|W| + |E| + 2)

    The L layers, then the embeddings: |W| word rows, |E| position rows and one LayerNorm (2). Heads and the pooler
    are not counted. Hugging Face's encoder has d_h more, a token-type row, which we add to the position rows on
    import (`model/checkpoints/huggingface.py`).
    """
    embeddings = config.hidden_size * (config.vocab_size + config.max_positions + 2)
    return config.num_layers * count_layer_parameters(config) + embeddings
