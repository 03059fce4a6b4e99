"""The corruption of masked language modelling."""

import torch
from torch import Tensor

from .tokenizer import Tokenizer

CHOSEN, MASKED, REPLACED = 0.15, 0.80, 0.10  # of the tokens; of the chosen ones (the last 10 % stay as they are)
NOT_CHOSEN = -100  # the label that equation (12) leaves out


def mask_tokens(input_ids: Tensor, tokenizer: Tokenizer, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """BERT's corruption, which equation (12) undoes.  input_ids (…) int64 -> corrupted (…), labels (…)

    Every ordinary token is chosen with probability 15 %, on its own; special tokens (<s>, </s>, <pad>, <unk>,
    <mask>) never are. Of the chosen, 80 % become <mask>, 10 % a random token, drawn evenly from the whole
    ordinary vocabulary, and 10 % stay. labels: the original where a token was chosen (also where it stays or is
    replaced), else -100. The same generator state gives the same corruption.
    """
    ordinary = tokenizer.ordinary_ids
    draw, fate = torch.rand((2, *input_ids.shape), generator=generator, device=generator.device)
    chosen = (draw < CHOSEN) & (input_ids >= ordinary.start) & (input_ids < ordinary.stop)
    random = torch.randint(ordinary.start, ordinary.stop, input_ids.shape, generator=generator, device=generator.device)
    masked = chosen & (fate < MASKED)
    replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
    labels = torch.where(chosen, input_ids, NOT_CHOSEN)
    corrupted = torch.where(masked, tokenizer.mask_id, torch.where(replaced, random, input_ids))
    return corrupted, labels
