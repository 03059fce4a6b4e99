"""int8: matrices and the inputs of their products rounded to 8 bits, the products summed exactly, in integers.

Each row of a matrix W (N, K), an output channel, and each row of an input x (M, K), a token, has a scale of its own,
symmetric about 0 (Q = 127):

    s_n = max_k |W_nk| / 127    w_nk = round(W_nk / s_n)        once, when the model is loaded or written
    t_m = max_k |x_mk| / Q      q_mk = round(x_mk / t_m)        at run time
    y_mn = t_m s_n Σ_k q_mk w_nk + b_n

Rounding moves W_nk by at most s_n / 2 and x_mk by at most t_m / 2, so that

    |y_mn − (Σ_k x_mk W_nk + b_n)|  ≤  s_n / 2 Σ_k |x_mk| + t_m / 2 Σ_k |W_nk| + K s_n t_m / 4

A matrix with outliers in its rows has a large s_n for its many small values. Where 8 bits would change a matrix by more
than 1.5 % of its norm (0.8 % is usual), it has 16, and its products are two, of high and low bytes:

    s_n = max_k |W_nk| / (127 · 256)    w_nk = 256 h_nk + l_nk    Σ_k q_mk w_nk = 256 Σ_k q_mk h_nk + Σ_k q_mk l_nk

The inputs of W^forward, outputs of GELU, are at least a = −0.17 (of ReLU, 0), so that all steps lie above it:

    t_m = (max_k x_mk − a) / (2 Q + 1)    q_mk = round((x_mk − a) / t_m)
    y_mn = t_m s_n Σ_k q_mk w_nk + (a s_n Σ_k w_nk + b_n)

A scale per token, not per tensor: a text's result does not depend on the texts that share its batch. Only products are
in int8; sums, GELU, LayerNorm and softmax stay in float32, and so do biases and the heads of the tasks. Queries, keys
and values are in bf16 where the processor multiplies it.
Shapes: M tokens, K inputs and N outputs of a product; V rows of an embedding matrix.
"""

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS, LEVELS_WITHOUT_VNNI = 127, 63  # Q
SMALLEST = torch.tensor(torch.finfo(torch.float32).tiny)
LOWEST = {"gelu": -0.17, "relu": 0.0}  # a, of what an activation gives
SCALE = "_scale"  # after the name of a matrix in int8: the name of its rows' scales
BYTE = 256  # values of the low byte of 16 bits
ROUNDING_LIMIT = 0.015  # ‖W − s w‖ / ‖W‖ from which a matrix has 16 bits
QUANTISED = "embeddings.", "layers."  # the encoder's; its tensors with two dimensions are matrices


def quantise_rows(matrix: Tensor, levels: int = LEVELS, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """float32 (…, K) -> the rows in dtype, (…, K), and their scales, (…, 1), which are not 0."""
    scale = row_scales(matrix, levels)
    return (matrix / scale).round_().to(dtype), scale


def quantise_matrix(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> w, (N, K) int8, or int16 if int8's rounding error exceeds ROUNDING_LIMIT; s, (N, 1) float32."""
    rows, scale = quantise_rows(matrix)
    error = torch.linalg.vector_norm(dequantise_rows(rows, scale).sub_(matrix))
    if error > ROUNDING_LIMIT * torch.linalg.vector_norm(matrix):
        rows, scale = quantise_rows(matrix, LEVELS * BYTE, torch.int16)
    return rows, scale


def row_scales(matrix: Tensor, levels: int) -> Tensor:
    """max_k |W_nk| / Q of each row, (…, K) -> (…, 1); of a row of zeros, the smallest number."""
    return torch.add(SMALLEST, matrix.abs().amax(dim=-1, keepdim=True), alpha=1 / levels)


def dequantise_rows(rows: Tensor, scale: Tensor) -> Tensor:
    """int8 or int16 (…, K), float32 (…, 1) -> float32 (…, K)"""
    return rows * scale


class QuantisedLinear(nn.Module):
    """y = activation(W x + b) with W and x in int8.  x: (…, K) float32 -> (…, N) float32; residual: added to y

    weight: w, (N, K) int8 or int16; scale: s, (N, 1); bias: (N,); activation: none, gelu or relu; dtype: of y
    lowest: a, below which no x is: x is what an activation gave, and is overwritten; by default, x is symmetric

    The rows from the first to the last that exceed 8 bits have one more each in the product, their high bytes.
    """

    def __init__(self, weight, scale, bias, activation="none", dtype=torch.float32, lowest: float | None = None):
        super().__init__()
        self.activation, self.dtype, self.lowest, self.levels = activation, dtype, lowest, activation_levels()
        self.bias, scale = bias if lowest is None else bias + lowest * (weight.sum(1) * scale[:, 0]), scale.flatten()
        self.zero_point = self.levels + 1 if lowest is None else 0
        self.rounding = torch.tensor(1.5 * 2**23 + self.zero_point)
        low, high = split_bytes(weight)
        wide = high.any(dim=1).nonzero().flatten().tolist()
        self.wide = slice(wide[0], wide[-1] + 1) if wide else slice(0)
        self.packed = torch.ops.onednn.qlinear_prepack(torch.cat([low, high[self.wide]]), None)
        self.scale = torch.cat([scale, scale[self.wide] * BYTE])
        self.zero_points = torch.zeros(len(self.scale), dtype=torch.int64)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.float()
        if self.lowest is None:
            scale = row_scales(x, self.levels)
            rows = x / scale
        else:
            scale = (x.amax(dim=-1, keepdim=True) - self.lowest).div_(2 * self.levels + 1).add_(SMALLEST)
            rows = x.sub_(self.lowest).div_(scale)
        rows = rows.add_(self.rounding).view(torch.int32).to(torch.uint8)  # the last bits of a sum at 1.5 · 2²³
        y = integer_product(rows, self.zero_point, self.packed, self.scale, self.zero_points)
        if len(self.scale) > len(self.bias):
            y, high = y.tensor_split([len(self.bias)], dim=-1)
            y[..., self.wide] += high
        torch.addcmul(self.bias, y, scale, out=y)
        if self.activation != "none":
            y = torch.ops.aten.gelu_(y) if self.activation == "gelu" else y.relu_()
        return (y if residual is None else y.add_(residual)).to(self.dtype)


def split_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """w, (N, K) int8 or int16 -> l and h, (N, K) int8, with w = 256 h + l; of int8, h has no rows."""
    if weight.dtype == torch.int8:
        return weight, weight[:0]
    low = weight.to(torch.int8)  # modulo 256, in -128 … 127
    return low, ((weight - low) // BYTE).to(torch.int8)


def integer_product(rows: Tensor, zero_point: int, packed: Tensor, scale: Tensor, zero_points: Tensor) -> Tensor:
    """s_n Σ_k q_mk w_nk.  rows: q + zero_point, (…, K) uint8; packed: w; scale, zero_points: (N,) -> (…, N)

    oneDNN's fast product takes unsigned inputs. Without VNNI they are below 128: two products with w then fit 16 bits.
    """
    return torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, zero_point, packed, scale, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )


class QuantisedEmbedding(nn.Module):
    """A lookup in an int8 matrix.  ids: (…) int64 -> (…, K) float32; weight: (V, K) int8; scale: (V, 1)"""

    def __init__(self, weight: Tensor, scale: Tensor):
        super().__init__()
        self.rows, self.scale = weight, scale

    def forward(self, ids: Tensor) -> Tensor:
        return dequantise_rows(F.embedding(ids, self.rows), F.embedding(ids, self.scale))

    @property
    def weight(self) -> Tensor:
        """(V, K) float32, for the tied decoder of the masked LM, whose logits are not computed in int8."""
        return dequantise_rows(self.rows, self.scale)


@functools.cache
def activation_levels() -> int:
    """Q = 127, or 63 on a processor without VNNI: there, two products are summed in 16 bits, which 127 overflows."""
    largest = torch.full((1, 64), LEVELS, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(largest, None)
    rows = torch.full((1, 64), 2 * LEVELS + 1, dtype=torch.uint8)
    found = integer_product(rows, LEVELS + 1, packed, torch.ones(1), torch.zeros(1, dtype=torch.int64))
    return LEVELS if found.item() == 64 * LEVELS**2 else LEVELS_WITHOUT_VNNI


def is_quantised(name: str, tensor: Tensor) -> bool:
    """Whether a model's tensor is a matrix of its encoder."""
    return tensor.ndim == 2 and any(part in name for part in QUANTISED)


def quantise_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors, with the encoder's matrices in int8 and their rows' scales beside them, as files hold them.

    Matrices of products have 16 bits where 8 round too much; embeddings never do.
    """
    quantised = {}
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            quantise = quantise_rows if "embeddings." in name else quantise_matrix
            quantised[name], quantised[name + SCALE] = quantise(tensor.float())
        else:
            quantised[name] = tensor
    return quantised


def dequantise_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of quantise_state, to rounding: all tensors in floating point."""
    return {
        name: dequantise_rows(tensor, state[name + SCALE]) if name + SCALE in state else tensor
        for name, tensor in state.items()
        if not name.endswith(SCALE)
    }
