"""Many texts through a model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data import Tokenizer
from data.features import Pieces, Window, budget_batches
from model import SequenceClassifier, encode_packed
from model.training.device import Runtime

BUDGET = 2048  # tokens at once: what a CPU is fastest with at camembert-base's width

Report = Callable[[str], None]


class Feature(NamedTuple):
    """What the model reads at once."""

    ids: list[int]
    example: int  # its number
    target: object = None  # a label's number; a label's number for each token; first and last token of the answer
    window: Window | None = None  # of a question
    pieces: Pieces | None = None  # of the whole sentence, whose tags are asked for


@dataclass(frozen=True)
class TaskSettings:
    """How texts are read."""

    tokenizer: Tokenizer
    most: int  # tokens at once
    windows: bool = False  # a long text by windows, whose probabilities are averaged, instead of cutting it
    doc_stride: int = 128
    max_answer: int = 30
    language: str = "fr"


def by_example(outputs: Sequence[Tensor], items: Sequence[Feature]) -> Iterator[tuple[int, list[tuple[Tensor, Feature]]]]:
    """Outputs and items of each example, which lie one after the other."""
    for number, group in groupby(zip(outputs, items), key=lambda pair: pair[1].example):
        yield number, list(group)


def packed_outputs(model: nn.Module, texts: Sequence[Sequence[int]], device: torch.device) -> Sequence[Tensor]:
    """The outputs of a sequence classifier, (C,), token classifier or question answerer, (n, C), for each text."""
    lengths = [len(ids) for ids in texts]
    input_ids = torch.tensor(list(chain.from_iterable(texts))).to(device)  # (T,)
    if isinstance(model, SequenceClassifier):
        return model.head(encode_packed(model.encoder, input_ids, lengths, first_only=True))  # (B, C)
    return model.head(encode_packed(model.encoder, input_ids, lengths)).split(lengths)


@torch.inference_mode()
def infer(model: nn.Module, texts: Sequence[Sequence[int]], runtime: Runtime, budget: int = BUDGET) -> list[Tensor]:
    """The same, without gradients, for any number of texts, in their order; float32, on the CPU."""
    results: list[Tensor | None] = [None] * len(texts)
    for batch in budget_batches([len(ids) for ids in texts], budget):
        with runtime.autocast():
            outputs = packed_outputs(model, [texts[i] for i in batch], runtime.device)
        for i, output in zip(batch, outputs):
            results[i] = output.float().cpu()
    return results
