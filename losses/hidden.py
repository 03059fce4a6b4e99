"""Beyond the paper: the student's layers, not only the last, point in the direction of the teacher's.

The last hidden states are compared by equation (11). PKD (Sun et al. 2019, arXiv:1908.09355) and TinyBERT (Jiao et al.
2020, arXiv:1909.10351) compare those in between too, by mean squares; here by 1 − cos, as in (11).

Shapes: d_h hidden size; … any leading dimensions, for example (B, n).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cosine import cosine_loss


def hidden_state_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], real: Tensor) -> tuple[Tensor, Tensor]:
    """HiddenStateLoss = 1/Σ_k n_k · Σ_k Σ_i 1/(L−1) · Σ_l (1 − cos(h_{l,k,i}^s, h_{l,k,i}^t)), l = 1 … L−1

    No equation of the paper: a term that later work adds to (13). L is the number of the student's layers.
    student h_l^s, teacher h_l^t: L − 1 tensors each, (…, d_h), the hidden states to compare; real: (…) bool
    -> the sum over the real tokens of the mean over the layers, (), and the number of real tokens, ().

    - Layers: h_l^s is the state after the student's layer l < L, h_l^t the one after the last of the teacher's layers
      that this layer replaces. The last hidden states belong to (11), and do not count twice.
    - Tokens, denominator, direction, temperature: as in `cosine_loss`.

    Raises ValueError for shapes that do not match, or without a layer.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"Of student and teacher, {len(student)} and {len(teacher)} states were given, not as many.")
    of_layers = [cosine_loss(*states, real)[0] for states in zip(student, teacher, strict=True)]
    return torch.stack(of_layers).mean(), real.sum()
