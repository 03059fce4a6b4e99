"""Many texts through a model, fast: without padding, sorted by length, a budget of tokens at once."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from data.features import budget_batches
from model import SequenceClassifier

from .machine import Machine

BUDGET = 2048  # tokens at once: what a CPU is fastest with at camembert-base's width


def packed_outputs(model: nn.Module, texts: Sequence[Sequence[int]], device: torch.device) -> Sequence[Tensor]:
    """The outputs of a sequence classifier, (C,), token classifier or question answerer, (n, C), for each text."""
    lengths = [len(ids) for ids in texts]
    input_ids = torch.tensor(list(chain.from_iterable(texts))).to(device)  # (T,)
    if isinstance(model, SequenceClassifier):
        return model.head(model.encoder.packed(input_ids, lengths, first_only=True))  # (B, C)
    return model.head(model.encoder.packed(input_ids, lengths)).split(lengths)


@torch.inference_mode()
def infer(model: nn.Module, texts: Sequence[Sequence[int]], machine: Machine, budget: int = BUDGET) -> list[Tensor]:
    """The same, without gradients, for any number of texts, in their order; float32, on the CPU."""
    results: list[Tensor | None] = [None] * len(texts)
    for batch in budget_batches([len(ids) for ids in texts], budget):
        with machine.autocast():
            outputs = packed_outputs(model, [texts[i] for i in batch], machine.device)
        for i, output in zip(batch, outputs):
            results[i] = output.float().cpu()
    return results
