"""Features, the inputs of a task's model, and batched inference on them without padding.

Shapes: n tokens of a feature, of which m are asked for; T tokens of a batch, B features in it, C labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.features import Pieces, Window, budget_batches
from data.tokenizer import Tokenizer
from model import SequenceClassifier, encode_packed
from model.training.device import Runtime

Report = Callable[[str], None]  # called with a sentence, for example a warning
Outputs = Sequence[Tensor]  # of a model, one per feature: of the tokens asked for, in training of all
BUDGET = 2048  # tokens per batch: the fastest on a CPU for a model of camembert-base's width


class Feature(NamedTuple):
    """One input of a model; an example longer than the model's maximum length gives several, called windows."""

    ids: list[int]
    example: int  # index of the example
    target: object = None  # class index; class index per token; or first and last token of the answer
    window: Window | None = None  # QA only
    pieces: Pieces | None = None  # NER only: of the whole sentence
    asked: Sequence[int] = range(1)  # the tokens whose outputs the task decodes: by default `<s>`


@dataclass(frozen=True)
class TaskSettings:
    """How examples are turned into features, and answers are selected and scored."""

    tokenizer: Tokenizer
    max_length: int  # tokens per window
    windows: bool = False  # long texts: average the probabilities of all windows, instead of truncating
    doc_stride: int = 128
    max_answer: int = 30
    language: str = "fr"
    no_answer_threshold: float | None = None  # see QuestionAnswerer; None: every question has an answer


def group_by_example(outputs: Outputs, features: Sequence[Feature]) -> Iterator[tuple[int, list]]:
    """-> for each example its index, and one pair (output, feature) per window; the windows are consecutive."""
    for index, group in groupby(zip(outputs, features), key=lambda pair: pair[1].example):
        yield index, list(group)


def packed_outputs(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    device: torch.device,
    asked: Sequence[Sequence[int]] | None = None,
) -> Outputs:
    """One batch of token ids -> per text (C,) of a sequence classifier, (m, C) of a token classifier, (m, 2) for QA.

    asked: of each text, the m tokens whose outputs are wanted, in this order; by default all n. A sequence classifier
    has the output of `<s>` only.
    The head is computed in float32 at least: in bfloat16, which has 8 bits, different values, labels or spans would
    often be equal.
    """
    seqlens = [len(ids) for ids in texts]
    input_ids = torch.tensor(list(chain.from_iterable(texts))).to(device)  # (T,)
    is_sequence = isinstance(model, SequenceClassifier)
    if is_sequence:
        asked = [range(1)] * len(texts)
    hidden = encode_packed(model.encoder, input_ids, seqlens, asked)  # (B, d_h), or the m or n states of all texts
    with torch.autocast(device.type, enabled=False):
        outputs = model.head(hidden.to(torch.promote_types(hidden.dtype, torch.float32)))
    return outputs if is_sequence else outputs.split(seqlens if asked is None else [len(each) for each in asked])


@torch.inference_mode()
def infer(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    runtime: Runtime,
    budget: int = BUDGET,
    asked: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """The outputs of packed_outputs for any number of texts, in their order, float32 on the CPU, without gradients.

    budget: tokens per batch. Texts of similar length share a batch.
    """
    results: list[Tensor | None] = [None] * len(texts)
    for batch in budget_batches([len(ids) for ids in texts], budget):
        of_batch = None if asked is None else [asked[i] for i in batch]
        outputs = packed_outputs(model, [texts[i] for i in batch], runtime.device, of_batch)
        for i, output in zip(batch, outputs):
            results[i] = output.float().cpu()
    return results


def infer_asked(model: nn.Module, features: Sequence[Feature], runtime: Runtime, budget: int) -> list[Tensor]:
    """What `decode` of a task takes: per feature the outputs of the tokens asked for, see infer."""
    return infer(model, [each.ids for each in features], runtime, budget, [each.asked for each in features])
