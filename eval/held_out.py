"""What a student, and its teacher, make of text that neither is trained on."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from data import DataError
from data.blocks import Batch
from losses import IGNORED, DistillationLoss, fused_distillation_loss, mlm_loss
from model import MaskedLM

from .machine import Machine
from .processes import ALONE, Processes


class Diverged(ArithmeticError):
    """A model or its loss is no number any more. The message says what to try."""


class LossOptions(Protocol):
    """Of a run's options, those that say what its loss is."""

    direction: str
    temperature: float
    weights: tuple[float, ...]
    chunk_mb: int


@torch.no_grad()
def measure_held_out(
    student: MaskedLM,
    teacher: MaskedLM | None,
    batches: Sequence[Batch],
    options: LossOptions,
    machine: Machine,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """-> loss, soft_label_loss, cosine_loss, mlm_loss; accuracy, teacher_accuracy, agreement; pseudo_perplexity

    The losses are those of equations (10) to (13), without dropout. Over the masked tokens (also those that the
    corruption kept or replaced): accuracy is the share whose original is the model's first guess, agreement the share
    where student and teacher guess the same, pseudo-perplexity e to the mean of equation (12). Counted over all
    batches of all processes together. Without a teacher, and of widths that differ for (11), a value is left out.
    Raises DataError if no token is masked, Diverged if the outputs are not finite.
    """
    was_training = student.training
    student.eval()
    sums = torch.zeros(5, dtype=torch.float64)
    right, teachers_right, agree = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        batch = batch.to(machine.device)
        masked = batch.labels != IGNORED
        with machine.autocast():
            hidden = student.encoder.forward(batch.input_ids, batch.real)  # not compiled, for these other shapes
            logits = student.head(hidden[masked])  # (N, |W|)
            guesses, labels = logits.argmax(dim=-1), batch.labels[masked]
            right += (guesses == labels).sum().cpu()
            if teacher is None:
                mlm, count = mlm_loss(logits, labels)
                none = torch.zeros_like(mlm)
                terms = DistillationLoss(none, none, mlm, batch.real.sum(), count)
            else:
                their_hidden = teacher.encoder.forward(batch.input_ids, batch.real)
                their_guesses = teacher.head(their_hidden[masked]).argmax(dim=-1)
                teachers_right += (their_guesses == labels).sum().cpu()
                agree += (their_guesses == guesses).sum().cpu()
                terms = all_terms(student, hidden, teacher, their_hidden, batch, options)
        sums += torch.stack([term.cpu().double() for term in terms])
    student.train(was_training)
    sums = processes.sum(sums)
    right, teachers_right, agree = processes.sum(torch.stack([right, teachers_right, agree])).tolist()
    terms = DistillationLoss(*sums)
    if not terms.masked_tokens:
        raise DataError("No token of the held-out text is masked: nothing can be measured on it. Add text.")
    soft_label, cosine, mlm = (mean.item() for mean in terms.means())
    loss = terms.total(options.weights).item() if teacher else mlm
    if not math.isfinite(loss):
        raise Diverged("The model's outputs on the held-out text are no numbers.")
    count = terms.masked_tokens.item()
    result = {"loss": loss, "mlm_loss": mlm, "accuracy": right / count, "pseudo_perplexity": math.exp(min(mlm, 700.0))}
    if teacher is not None:
        result |= {"soft_label_loss": soft_label, "cosine_loss": cosine}
        result |= {"teacher_accuracy": teachers_right / count, "agreement": agree / count}
    return result


def all_terms(
    student: MaskedLM,
    hidden: torch.Tensor,
    teacher: MaskedLM,
    their_hidden: torch.Tensor,
    batch: Batch,
    options: LossOptions,
) -> DistillationLoss:
    """The three terms from the last hidden states, as sums; (11) is left out, as 0, where the widths differ."""
    same_width = hidden.shape[-1] == their_hidden.shape[-1]
    hidden, their_hidden = hidden.flatten(0, 1), their_hidden.flatten(0, 1)
    _, terms = fused_distillation_loss(
        student.transform(hidden),
        student.decoder,
        student.bias,
        teacher.transform(their_hidden),
        teacher.decoder,
        teacher.bias,
        batch.labels.flatten(),
        batch.real.flatten(),
        hidden if same_width else None,
        their_hidden if same_width else None,
        direction=options.direction,
        temperature=options.temperature,
        weights=(1.0, float(same_width), 1.0),  # what has no weight is not computed
        real_tokens=1,
        masked_tokens=1,
        chunk_bytes=options.chunk_mb << 20,
    )
    return terms
