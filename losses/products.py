"""The fused loss's products and column sums, in the form that is fast on a type of device."""

from collections.abc import Mapping

import torch
from torch import Tensor

TILE, BIAS_ROWS = 4096, 64  # rows of the vocabulary, of a chunk, whose float32 copies fit a CPU's cache
PRODUCT_COLUMNS = {"cpu": 1, "cuda": 64}  # of the vocabulary: see `parts_of_vocabulary`


def of_device(sizes: Mapping[str, int], device: torch.device) -> int:
    """The size for this type of device; every accelerator takes that of CUDA."""
    return sizes.get(device.type, sizes["cuda"])


def parts_of_vocabulary(vocab_size: int, device: torch.device) -> list[slice]:
    """The columns of logits that a product computes, and those of another, small one.

    A GPU's fast kernels in half precision need sizes that are multiples of 8: with all 32,005 columns, these products
    took 8.5 ms of a step on an H200, with 32,000 of them 1.2 (eval/LOG.md). Padding both matrices would copy them.
    """
    size = of_device(PRODUCT_COLUMNS, device)
    whole = vocab_size // size * size
    return [part for part in (slice(0, whole), slice(whole, vocab_size)) if part.start < part.stop]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, also with half-precision factors.  total: at least in float32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:  # PyTorch's CPU has no such product: each chunk is rounded once, their sum is not. Tiles keep that small
        for rows, left_rows in zip(total.split(TILE), left.split(TILE), strict=True):
            rows += left_rows @ right


def add_column_sums(total: Tensor, matrix: Tensor) -> None:
    """total += matrix.sum(dim=0).  total: (V,), at least in float32; matrix: (C, V)."""
    parts = [matrix] if matrix.is_cuda else matrix.split(BIAS_ROWS)  # a CPU casts its operand first: it must be small
    for part in parts:
        total += part.sum(dim=0, dtype=total.dtype)
