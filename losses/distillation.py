"""Equation (13): the weighted sum of the three losses, in the form to read. `fused.py` is what training runs."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .cosine import cosine_loss
from .mlm import mlm_loss
from .soft_label import soft_label_loss

WEIGHTS = (0.5, 0.3, 0.2)  # equation (13): soft label, cosine, masked LM


class DistillationLoss(NamedTuple):
    """The three terms as sums, and the two numbers of tokens that their means divide by. Each is ().

    Sums and counts of micro-batches, and of ranks, add up; the mean is taken once per optimiser step.
    """

    soft_label: Tensor
    cosine: Tensor
    mlm: Tensor
    real_tokens: Tensor
    masked_tokens: Tensor

    def means(self, real_tokens=None, masked_tokens=None) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of equations (10), (11) and (12): the sums over the given counts, or over their own.

        If no token counts, sum and mean are 0.
        """
        real = self.real_tokens if real_tokens is None else real_tokens
        masked = self.masked_tokens if masked_tokens is None else masked_tokens
        return self.soft_label / at_least_1(real), self.cosine / at_least_1(real), self.mlm / at_least_1(masked)

    def total(self, weights: Sequence[float] = WEIGHTS, real_tokens=None, masked_tokens=None) -> Tensor:
        """Equation (13), section 3.2.  Loss = 0.5 × SoftLabelLoss + 0.3 × CosineLoss + 0.2 × MLMLoss

        With the counts of a whole optimiser step, the totals of its micro-batches add up to that of one large batch.
        """
        means = self.means(real_tokens, masked_tokens)
        return sum(weight * mean for weight, mean in zip(weights, means, strict=True))


def at_least_1(count):
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    labels: Tensor,
    real: Tensor,
    *,
    direction: str = "student-teacher",
    temperature: float = 1.0,
) -> DistillationLoss:
    """The three terms of equation (13) as sums with counts; `.total()` is the equation.

    student_logits, teacher_logits: (…, |W|); student_hidden, teacher_hidden: (…, d_h), the last hidden states;
    labels: (…) int64, IGNORE_INDEX where not masked; real: (…) bool.
    Denominators: the real tokens for (10) and (11), the masked tokens for (12).
    Raises ValueError if a term does.
    """
    soft_label, real_tokens = soft_label_loss(
        student_logits, teacher_logits, real, direction=direction, temperature=temperature
    )
    cosine, _ = cosine_loss(student_hidden, teacher_hidden, real)
    mlm, masked_tokens = mlm_loss(student_logits, labels)
    return DistillationLoss(soft_label, cosine, mlm, real_tokens, masked_tokens)
