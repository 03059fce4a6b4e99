"""The corruption of masked language modelling: which tokens the model has to predict, and what it sees instead."""

import numpy
import torch
from torch import Tensor

from losses import IGNORE_INDEX

from .corpus.shuffle import uniform
from .tokenizer import Tokenizer

CHOSEN = 0.15  # of the ordinary tokens: BERT's rate
TRAINING_RATE = 0.4  # in distillation: a student learns most at the masked tokens (eval/LOG.md)
RATE = dict(least=0.01, most=0.9)  # bounds of another; without any context there is nothing to learn
MASKED, REPLACED = 0.80, 0.10  # of the chosen tokens; the others stay
RARITY = 0.7  # exponent of "rare", as in the DistilBERT script
STRATEGIES = ("tokens", "words", "rare")


class Masking:
    """BERT's corruption: 15 % of the tokens are chosen; 80 % of these become <mask>, 10 % a random token, 10 % stay.

    rate: another fraction than 15 % to choose.
    strategy: how they are chosen.
      "tokens": each ordinary token independently, with this probability.
      "words": each word independently, with all its tokens. A word begins at a ▁, or after a special token.
      "rare": exactly this fraction of the ordinary tokens of each sequence, drawn without replacement with weights
        count^-0.7, as the DistilBERT script does for each batch.
    counts: the number of occurrences of each id in the corpus, (vocabulary size,), for "rare" only.

    Special tokens (<s>, </s>, <pad>, <unk>, <mask>) are never chosen. A random token is drawn uniformly from the
    ordinary vocabulary.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        strategy: str = STRATEGIES[0],
        counts: numpy.ndarray | None = None,
        rate: float = CHOSEN,
    ):
        self.tokenizer, self.strategy, self.rate = tokenizer, strategy, rate
        if strategy == "words":
            self.begins_word = numpy.array([piece.startswith("▁") for piece in tokenizer.pieces(range(len(tokenizer)))])
        if strategy == "rare":
            self.weights = numpy.maximum(counts, 1).astype(numpy.float64) ** -RARITY

    def __call__(self, input_ids: Tensor, keys: numpy.ndarray) -> tuple[Tensor, Tensor]:
        """input_ids (B, n) int64, keys (B,) uint64 -> corrupted ids (B, n) int64, labels (B, n) int64

        labels: the original id of each chosen token, IGNORE_INDEX elsewhere. The corruption of a sequence depends on
        the sequence and its key alone.
        """
        ids, ordinary = input_ids.numpy(), self.tokenizer.ordinary_ids
        is_ordinary = (ids >= ordinary.start) & (ids < ordinary.stop)
        draw, fate, replacement = (uniform(keys, ids.shape[1], stream) for stream in range(3))
        chosen = getattr(self, f"_choose_{self.strategy}")(ids, is_ordinary, draw) & is_ordinary
        random_ids = ordinary.start + (replacement * len(ordinary)).astype(numpy.int64)
        masked = chosen & (fate < MASKED)
        replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
        corrupted = numpy.where(masked, self.tokenizer.mask_id, numpy.where(replaced, random_ids, ids))
        return torch.from_numpy(corrupted), torch.from_numpy(numpy.where(chosen, ids, IGNORE_INDEX))

    def _choose_tokens(self, ids: numpy.ndarray, is_ordinary: numpy.ndarray, draw: numpy.ndarray) -> numpy.ndarray:
        return draw < self.rate

    def _choose_words(self, ids: numpy.ndarray, is_ordinary: numpy.ndarray, draw: numpy.ndarray) -> numpy.ndarray:
        """Every token uses the random number of the first token of its word."""
        begins = self.begins_word[ids] | ~is_ordinary
        begins[:, 0] = True
        begins[:, 1:] |= ~is_ordinary[:, :-1]
        first = numpy.maximum.accumulate(numpy.where(begins, numpy.arange(ids.shape[1]), 0), axis=1)
        return numpy.take_along_axis(draw, first, axis=1) < self.rate

    def _choose_rare(self, ids: numpy.ndarray, is_ordinary: numpy.ndarray, draw: numpy.ndarray) -> numpy.ndarray:
        """The shortest exponential waiting times, with the weights as rates: a weighted draw without replacement."""
        wait = numpy.where(is_ordinary, -numpy.log1p(-draw) / self.weights[ids], numpy.inf)
        rank = wait.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        return rank < numpy.rint(self.rate * is_ordinary.sum(axis=1, keepdims=True))
