"""What a masked language model guesses on text that it was not trained on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from data import DataError
from data.blocks import Batch
from losses import IGNORED
from model import MaskedLM


class Diverged(ArithmeticError):
    """A model or its loss is no number any more. The message says what to try."""


@torch.no_grad()
def masked_accuracy(
    model: MaskedLM, batches: Sequence[Batch], autocast: Callable[[], AbstractContextManager] = nullcontext
) -> float:
    """The share of masked tokens whose original is the model's first guess, between 0 and 1.

    Counted over the masked tokens of all batches together (also those that the corruption kept or replaced).
    The vocabulary projection is made for these tokens only. Raises DataError if no token is masked, Diverged if
    the model's outputs are not finite.
    """
    device = model.bias.device
    was_training = model.training
    model.eval()
    right = total = 0
    for batch in batches:
        batch = batch.to(device)
        masked = batch.labels != IGNORED
        with autocast():
            hidden = model.encoder.forward(batch.input_ids, batch.real)  # not compiled, for these other shapes
            logits = model.head(hidden[masked])  # (N, |W|)
        if not logits.isfinite().all():
            raise Diverged("The model's outputs on the held-out text are no numbers.")
        guesses = logits.argmax(dim=-1)
        right += (guesses == batch.labels[masked]).sum().item()
        total += len(guesses)
    model.train(was_training)
    if not total:
        raise DataError("No token of the held-out text is masked: nothing can be measured on it. Add text.")
    return right / total
