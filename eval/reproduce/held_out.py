"""What masked LMs predict at the masked tokens of held-out text, per block, so that runs can be compared in pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data.blocks import Batch, open_blocks, validation_batches
from data.masking import Masking
from data.tokenizer import Tokenizer
from losses import IGNORE_INDEX, LossSettings
from model import MaskedLM
from model.training.device import Runtime

from ..validation import validate

COLUMNS = ("masked", "right", "as_teacher", "teacher_right")  # of counts
BATCH = 32  # blocks


class Predictions(NamedTuple):
    """At the N masked tokens, in the order of the blocks."""

    tokens: ndarray  # (N,) int64, the most likely ones
    mlm_loss: float  # equation (12), the mean


class HeldOut(NamedTuple):
    """The held-out text: the same blocks with the same masks for every model."""

    batches: list[Batch]
    labels: ndarray  # (N,) int64, the original tokens
    block: ndarray  # (N,) int64, the block of each
    blocks: int


def read_held_out(corpus: Path, tokenizer: Tokenizer, block_size: int, blocks: int) -> HeldOut:
    """At most so many blocks, evenly spaced.  Raises DataError."""
    _, held_out = open_blocks(corpus, tokenizer, block_size)
    batches = validation_batches(held_out, Masking(tokenizer), blocks, BATCH)
    labels = torch.cat([batch.labels for batch in batches])
    block, place = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    return HeldOut(batches, labels[block, place].numpy(), block.numpy(), len(labels))


def predict(model: MaskedLM, held_out: HeldOut, runtime: Runtime) -> Predictions:
    """Without dropout. Only the masked tokens go through the LM head."""
    runtime.cast_linears(model)
    tokens: list[Tensor] = []

    def observe(batch: Batch, logits: Tensor, _) -> None:
        tokens.append(logits.argmax(dim=-1).cpu())

    figures = validate(model, None, held_out.batches, LossSettings(), runtime, observe=observe)
    return Predictions(torch.cat(tokens).numpy(), figures["mlm_loss"])


def count_by_block(held_out: HeldOut, tokens: ndarray, teacher_tokens: ndarray) -> ndarray:
    """-> (blocks, 4) int64, COLUMNS: the masked tokens; where the model is right, agrees with the teacher; where the
    teacher is right."""
    right, agree, teacher_right = tokens == held_out.labels, tokens == teacher_tokens, teacher_tokens == held_out.labels
    columns: Sequence[ndarray] = (numpy.ones_like(right), right, agree, teacher_right)
    counts = [numpy.bincount(held_out.block, column, held_out.blocks) for column in columns]
    return numpy.stack(counts, axis=1).astype(numpy.int64)
