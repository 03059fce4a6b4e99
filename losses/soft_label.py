"""Equation (10): the student learns the teacher's whole distribution over the vocabulary."""

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
    """Equation (10), section 3.2.  T² D_KL(p^s || p^t) = T² Σ_w p^s_w (log p^s_w - log p^t_w), p = softmax(z / T)

    student_logits z^s, teacher_logits z^t: (…, |W|); real: (…) bool -> sum (), count ().  In nats.

    - Which tokens count: every real one (masked or not), never padding. Where `real` is false nothing is read.
    - Denominator: their number, returned as the count; the mean is taken once a step, by the caller.
    - Direction: "student-teacher" is D_KL(p^s || p^t), as printed. "teacher-student" is D_KL(p^t || p^s), as in
      the DistilBERT code that the authors started from. No gradient is meant to reach the teacher.
    - Temperature: 1 as printed. The factor T² keeps the gradient's size when T is raised (DistilBERT: T = 2).

    Half-precision logits are taken up to float32 first. Raises ValueError for another direction, for a
    temperature that is not above 0, or for shapes that do not fit.
    """
    check_divergence(direction, temperature)
    if student_logits.shape != teacher_logits.shape or student_logits.shape[:-1] != real.shape:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} must be "
            f"alike, and real {tuple(real.shape)} must be that without the vocabulary."
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
    """Raises ValueError for another direction, or a temperature that is not above 0."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {' or '.join(DIRECTIONS)}, not {direction!r}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}.")


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision up to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
