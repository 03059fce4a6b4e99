"""Losses, accuracy, agreement and speed on held-out text."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from data import DataError
from data.blocks import Batch
from losses import IGNORE_INDEX, DistillationLoss, LossSettings, fused_distillation_loss, mlm_loss
from model import MaskedLM
from model.training.device import Runtime
from model.training.distributed import SINGLE, World
from model.training.state import Diverged

VALIDATION_BLOCKS = 256  # at most, during a run


@torch.no_grad()
def validate(
    student: MaskedLM,
    teacher: MaskedLM | None,
    batches: Sequence[Batch],
    settings: LossSettings,
    runtime: Runtime,
    world: World = SINGLE,
    observe: Callable[[Batch, Tensor, Tensor | None], None] | None = None,
) -> dict[str, float]:
    """-> loss and the losses of its terms, accuracy, pseudo_perplexity; teacher_accuracy, teacher_mlm_loss, agreement

    The losses of equations (10) to (13), without dropout. Over the masked tokens (also those that the corruption kept
    or replaced): accuracy is the fraction whose most likely token is the original, agreement the fraction where
    student and teacher predict the same token, pseudo-perplexity is e to the loss of equation (12). Counted over all
    batches of all ranks. Without a teacher its figures are left out; if the widths differ, (11) counts as 0.
    observe: called with each batch, the student's logits at its N masked tokens, (N, |W|), and the tokens that the
    teacher predicts there, (N,).
    Raises DataError if no token is masked, Diverged if the outputs are not finite.
    """
    was_training = student.training
    student.eval()
    exact = dict(dtype=torch.float64, device=runtime.device)  # read once, at the end: each reading waits for a GPU
    sums, teacher_mlm = torch.zeros(5, **exact), torch.zeros((), **exact)
    correct = torch.zeros(3, **exact)  # tokens where the student is right, the teacher is, the two agree
    for batch in batches:
        batch = batch.to(runtime.device)
        masked = batch.labels != IGNORE_INDEX
        with runtime.autocast():
            hidden = last_hidden_state(student, batch, runtime)
            logits = student.head(hidden[masked])  # (N, |W|)
            predictions, labels = logits.argmax(dim=-1), batch.labels[masked]
            correct[0] += (predictions == labels).sum()
            if teacher is None:
                teacher_predictions = None
                mlm, count = mlm_loss(logits, labels)
                zero = torch.zeros_like(mlm)
                terms = DistillationLoss(zero, zero, mlm, batch.real.sum(), count)
            else:
                teacher_hidden = last_hidden_state(teacher, batch, runtime)
                teacher_logits = teacher.head(teacher_hidden[masked])
                teacher_predictions = teacher_logits.argmax(dim=-1)
                teacher_mlm += mlm_loss(teacher_logits, labels)[0]
                correct[1] += (teacher_predictions == labels).sum()
                correct[2] += (teacher_predictions == predictions).sum()
                terms = all_terms(student, hidden, teacher, teacher_hidden, batch, settings)
        if observe is not None:
            observe(batch, logits, teacher_predictions)
        sums += torch.stack([term.double() for term in terms])
    student.train(was_training)
    terms = DistillationLoss(*world.sum(sums).cpu())
    if not terms.masked_tokens:
        raise DataError("No token of the held-out text is masked, so nothing can be validated on it. Add text.")
    soft_label, cosine, mlm = (mean.item() for mean in terms.means())
    loss = terms.total(settings.weights).item() if teacher else mlm
    if not math.isfinite(loss):
        raise Diverged("The model's outputs on the held-out text are not finite.")
    accuracy, teacher_accuracy, agreement = (world.sum(correct) / terms.masked_tokens).tolist()
    result = {"loss": loss, "mlm_loss": mlm, "accuracy": accuracy, "pseudo_perplexity": math.exp(min(mlm, 700.0))}
    if teacher is not None:
        result |= {"soft_label_loss": soft_label, "cosine_loss": cosine}
        result |= {"teacher_accuracy": teacher_accuracy, "agreement": agreement}
        result["teacher_mlm_loss"] = (world.sum(teacher_mlm) / terms.masked_tokens).item()
    return result


@torch.no_grad()
def encoder_speeds(models: Mapping[str, MaskedLM], batch: Batch, runtime: Runtime) -> dict[str, float]:
    """Tokens per second of each model's encoder on half of a batch, without dropout, uncompiled.

    The models run in turn, for about a second, or three times if they are slow; the first time does not count. Their
    matrices are cast to the run's precision for good.
    """
    half = max(1, len(batch.input_ids) // 2)
    batch = batch._replace(input_ids=batch.input_ids[:half], labels=batch.labels[:half], real=batch.real[:half])
    batch, tokens = batch.to(runtime.device), int(batch.real.sum())
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        runtime.cast_linears(model.eval())
    begun, rounds = time.monotonic(), 0
    while rounds < 3 or (rounds < 50 and time.monotonic() - begun < 1.0):
        for name, model in models.items():
            start = time.monotonic()
            with runtime.autocast():
                last_hidden_state(model, batch, runtime).sum().item()  # waits for a GPU
            seconds[name].append(time.monotonic() - start)
        rounds += 1
    return {name: tokens / statistics.median(each[1:]) for name, each in seconds.items()}


def last_hidden_state(model: MaskedLM, batch: Batch, runtime: Runtime) -> Tensor:
    """H_L, (B, n, d_h), without the compiled layers, which are compiled for other shapes."""
    eager = torch.compiler.set_stance("force_eager") if runtime.compiled else contextlib.nullcontext()
    with eager:
        return model.encoder(batch.input_ids, batch.real, has_padding=batch.has_padding)


def all_terms(
    student: MaskedLM, hidden: Tensor, teacher: MaskedLM, teacher_hidden: Tensor, batch: Batch, settings: LossSettings
) -> DistillationLoss:
    """The three terms as sums, from the last hidden states (B, n, d_h); (11) is 0 if the widths differ."""
    same_width = hidden.shape[-1] == teacher_hidden.shape[-1]
    hidden, teacher_hidden = hidden.flatten(0, 1), teacher_hidden.flatten(0, 1)
    _, terms = fused_distillation_loss(
        *(student.transform(hidden), student.decoder, student.bias),
        *(teacher.transform(teacher_hidden), teacher.decoder, teacher.bias),
        *(batch.labels.flatten(), batch.real.flatten()),
        *((hidden, teacher_hidden) if same_width else (None, None)),
        direction=settings.direction,
        temperature=settings.temperature,
        chunk_bytes=settings.chunk_bytes,
    )
    return terms
