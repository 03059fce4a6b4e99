"""Equation (11): the student's last hidden states point in the direction of the teacher's.

Shapes: d_h hidden size; … any leading dimensions, for example (B, n).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .soft_label import at_least_float32


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (11), section 3.2.  CosineLoss = 1/Σ_k n_k · Σ_k Σ_i (h_{k,i}^s)^T h_{k,i}^t / (‖h_{k,i}^s‖ ‖h_{k,i}^t‖)

    student_hidden h^s, teacher_hidden h^t: (…, d_h), the last hidden states; real: (…) bool
    -> the sum of 1 − cos over the real tokens, (), and their number, ().  Each term is between 0 and 2.

    - Sign: the paper prints the mean of the cosine. Minimised as printed it would push the two apart, so each term
      is 1 − cos(h^s, h^t).
    - Tokens: every real one, never padding. Where `real` is false nothing is read.
    - Denominator: Σ_k n_k, the number of real tokens, returned as the count. It has no direction and no temperature.

    Raises ValueError for shapes that do not match; student and teacher must have the same width.
    """
    if student_hidden.shape != teacher_hidden.shape or student_hidden.shape[:-1] != real.shape:
        raise ValueError(
            f"student_hidden {tuple(student_hidden.shape)} and teacher_hidden {tuple(teacher_hidden.shape)} must have "
            f"the same shape, and real {tuple(real.shape)} that shape without the width."
        )
    padding = ~real[..., None]  # replaced by equal vectors, so that its values are neither read nor counted
    student, teacher = (at_least_float32(hidden).masked_fill(padding, 1) for hidden in (student_hidden, teacher_hidden))
    distances = 1 - F.cosine_similarity(student, teacher, dim=-1)  # (…)
    return torch.where(real, distances, 0).sum(), real.sum()
