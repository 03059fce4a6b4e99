"""Equation (11): the student's last hidden states point where the teacher's do."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .soft_label import at_least_float32


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (11), section 3.2.  1 - h^s · h^t / (|h^s| |h^t|), summed over real tokens.

    student_hidden h^s, teacher_hidden h^t: (…, d_h), the last hidden states; real: (…) bool
    -> sum (), count ().  Between 0 (same direction) and 2 (opposite) a token.

    - The sign: the paper prints the mean of the cosine itself. Minimised as printed it would push the two
      apart, so we take 1 - cos.
    - Which tokens count: every real one, never padding. Where `real` is false nothing is read.
    - Denominator: their number, returned as the count. Direction and temperature: it has none.

    Raises ValueError for shapes that do not fit; teacher and student must be of one width.
    """
    if student_hidden.shape != teacher_hidden.shape or student_hidden.shape[:-1] != real.shape:
        raise ValueError(
            f"student_hidden {tuple(student_hidden.shape)} and teacher_hidden {tuple(teacher_hidden.shape)} must be "
            f"alike, and real {tuple(real.shape)} must be that without the width."
        )
    padding = ~real[..., None]  # two like vectors stand in for it, so that no number of it is read, nor counted
    student, teacher = (at_least_float32(hidden).masked_fill(padding, 1) for hidden in (student_hidden, teacher_hidden))
    distances = 1 - F.cosine_similarity(student, teacher, dim=-1)  # (…)
    return torch.where(real, distances, 0).sum(), real.sum()
