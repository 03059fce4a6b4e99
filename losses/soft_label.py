"""Equation (10): the student learns the teacher's distribution over the vocabulary.

Shapes: |W| vocabulary size; … any leading dimensions, for example (B, n).
"""

import torch
from torch import Tensor

DIRECTIONS = ("student-teacher", "teacher-student")


def soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    real: Tensor,
    *,
    direction: str = "student-teacher",
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Equation (10), section 3.2.  SoftLabelLoss = 1 / Σ_k n_k · Σ_k Σ_i D_KL(p_{k,i}^s ‖ p_{k,i}^t)

    D_KL(p^s ‖ p^t) = Σ_w p_w^s (log p_w^s − log p_w^t), with p = softmax(z / T), in nats.
    student_logits z^s, teacher_logits z^t: (…, |W|); real: (…) bool
    -> T² times the sum of D_KL over the real tokens, (), and their number, ().

    - Tokens: every real one, masked or not, never padding. Where `real` is false nothing is read.
    - Denominator: Σ_k n_k, the number of real tokens, returned as the count; the caller takes the mean once a step.
    - Direction: "student-teacher" is D_KL(p^s ‖ p^t), as printed. "teacher-student" is D_KL(p^t ‖ p^s), as in the
      DistilBERT script. No gradient is meant for the teacher.
    - Temperature: T = 1 as printed. The factor T² keeps the size of the gradient for other T (DistilBERT: T = 2).

    Computed in float32 for half-precision logits. Raises ValueError for an unknown direction, a temperature that is
    not above 0, or shapes that do not match.
    """
    check_divergence(direction, temperature)
    if student_logits.shape != teacher_logits.shape or student_logits.shape[:-1] != real.shape:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} must have "
            f"the same shape, and real {tuple(real.shape)} that shape without the vocabulary."
        )
    student, teacher = (  # (N, |W|) log-probabilities of the N real tokens
        (at_least_float32(logits[real]) / temperature).log_softmax(dim=-1)
        for logits in (student_logits, teacher_logits)
    )
    if direction == "student-teacher":
        divergence = (student.exp() * (student - teacher)).sum()
    else:
        divergence = (teacher.exp() * (teacher - student)).sum()
    return temperature**2 * divergence, real.sum()


def check_divergence(direction: str, temperature: float) -> None:
    """Raises ValueError for an unknown direction, or a temperature that is not above 0."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be {' or '.join(DIRECTIONS)}, not {direction!r}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}.")


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
