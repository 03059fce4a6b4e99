"""An encoder frozen for inference on a CPU: its matrices packed once, in the order in which the processor reads them.

PyTorch's linear reads its matrix as it lies in memory, at every call; for short inputs that is half of the time. The
packed products are oneDNN's, with bias, activation and residual sum in the same pass. The equations are those of
`attention.py` and `encoder.py`; a test holds the two equal.
Shapes: T tokens, B sequences, n tokens of a sequence, d_h hidden size, E intermediate size, J heads.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .config import ModelError
from .encoder import Encoder, TransformerLayer
from .memory import keep_freed_memory
from .quantised import LOWEST, SCALE, QuantisedEmbedding, QuantisedLinear, quantise_state

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MakeLinear = Callable[..., nn.Module]  # (names of matrices, one below the other, activation="none") -> their product


def freeze(encoder: Encoder, precision: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Makes the encoder one for inference in fp32, bf16, fp16 or int8, in place. It takes no gradients any more.

    In half precision all of it is cast, once, so that nothing needs autocast; LayerNorm and softmax sum in float32
    inside their kernels. On a GPU, and where the processor's oneDNN lacks the precision, that is all that happens.
    On a CPU, the matrices are packed; in int8 they are rounded (`quantised.py`), and the states stay in float32.
    state: int8 only: the encoder's tensors as quantise_state gives them (the encoder may be on "meta"); by default,
    they are made from the encoder's.
    Raises ModelError for int8 on a GPU.
    """
    device = encoder.embeddings.norm.weight.device.type
    encoder.requires_grad_(False)
    if device in ("cpu", "meta"):
        keep_freed_memory()
    if precision == "int8":
        if device not in ("cpu", "meta"):
            raise ModelError(f"int8 runs on a CPU, not on {device}. Use bf16 or fp16 there.")
        state = quantise_state(encoder.state_dict()) if state is None else state
        norms = {name: state[name].clone() for name in encoder.state_dict() if "norm." in name}
        encoder.load_state_dict(norms, strict=False, assign=True)
        for part in ("word", "position"):
            name = f"embeddings.{part}.weight"
            setattr(encoder.embeddings, part, QuantisedEmbedding(state[name], state[name + SCALE]))
        attention = {"dtype": torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32}
        settings = dict.fromkeys(("attention.query", "attention.key"), attention)
        settings["feed_forward.forward_proj"] = {"lowest": LOWEST[encoder.config.activation]}
        make_linear = partial(linear_of, QuantisedLinear, ("weight", "weight" + SCALE, "bias"), settings, state)
    else:
        encoder.to(PRECISIONS[precision]).eval()
        if device != "cpu" or not can_pack(PRECISIONS[precision]):
            return
        make_linear = partial(linear_of, PackedLinear, ("weight", "bias"), {}, encoder.state_dict())
    for number, layer in enumerate(encoder.layers):
        is_last = number == len(encoder.layers) - 1
        of_layer = partial(make_linear, f"layers.{number}.")
        encoder.layers[number] = FrozenLayer(layer, of_layer, encoder.config.activation, is_last)
    encoder.eval()


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 itself: a GPU since Ampere, a CPU with AVX-512 or AMX for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(key) for key in ("amx_bf16", "avx512_bf16", "bf16"))


class PackedLinear(nn.Module):
    """activation(W x + b), or W x + b + residual, with a packed matrix.  x: (…, K), residual: (…, N) -> (…, N)"""

    def __init__(self, weight: Tensor, bias: Tensor, activation: str = "none"):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias, self.activation = bias, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.packed, self.bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.activation, [], "none")


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and this processor have packed products of this dtype."""
    try:
        PackedLinear(torch.zeros(8, 8, dtype=dtype), torch.zeros(8, dtype=dtype))(torch.zeros(1, 8, dtype=dtype))
    except (RuntimeError, AttributeError):  # AttributeError: a PyTorch without oneDNN
        return False
    return True


def linear_of(
    kind: type,
    parts: Sequence[str],
    settings: Mapping[str, Mapping],
    state: Mapping[str, Tensor],
    prefix: str,
    *names: str,
    activation: str = "none",
) -> nn.Module:
    """A PackedLinear or QuantisedLinear of several matrices, one below the other.

    parts: what it needs of each, of the names prefix + name + "." + part in the encoder's tensors
    settings: further arguments of its kind, by the first name
    """
    tensors = (torch.cat([state[f"{prefix}{name}.{part}"] for name in names]) for part in parts)
    return kind(*tensors, activation, **settings.get(names[0], {}))


class FrozenAttention(nn.Module):
    """`MultiHeadAttention` with its matrices for queries, keys and values in one product.

    is_last: of the last layer, which may ask for fewer queries: they then have a product of their own.
    """

    split_heads, concatenate_heads = MultiHeadAttention.split_heads, MultiHeadAttention.concatenate_heads
    attend, forward = MultiHeadAttention.attend, MultiHeadAttention.forward

    def __init__(self, attention: MultiHeadAttention, make_linear: MakeLinear, is_last: bool):
        super().__init__()
        self.num_heads, self.dropout = attention.num_heads, attention.dropout
        query, key, value = (f"attention.{name}" for name in ("query", "key", "value"))
        products = [(query,), (key, value)] if is_last else [(query, key, value)]
        self.products = nn.ModuleList(make_linear(*names) for names in products)
        self.out = make_linear("attention.out")

    def project(self, asking: Tensor, hidden: Tensor) -> list[Tensor]:
        """Queries of the tokens that ask, keys and values of all tokens, each (B, J, n, d_h / J)."""
        if len(self.products) == 1:
            projected = self.products[0](hidden).chunk(3, dim=-1)
        else:
            query, key_value = self.products
            projected = query(asking), *key_value(hidden).chunk(2, dim=-1)
        return [self.split_heads(each) for each in projected]


class FrozenLayer(nn.Module):
    """`TransformerLayer` with packed matrices.  hidden: (B, n, d_h) -> (B, n, d_h)"""

    forward = TransformerLayer.forward

    def __init__(self, layer: TransformerLayer, make_linear: MakeLinear, activation: str, is_last: bool):
        super().__init__()
        self.attention = FrozenAttention(layer.attention, make_linear, is_last)
        self.attention_norm, self.feed_forward_norm = layer.attention_norm, layer.feed_forward_norm
        self.feed = make_linear("feed_forward.feed", activation=activation)
        self.forward_proj = make_linear("feed_forward.forward_proj")

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """H and MultiHead_l(H) -> H_l.  (…, d_h), (…, d_h) -> (…, d_h)"""
        hidden = self.attention_norm(hidden + attended)  # A
        return self.feed_forward_norm(self.forward_proj(self.feed(hidden), hidden))
