"""The corruption of masked language modelling."""

import numpy
import torch
from torch import Tensor

from losses import IGNORE_INDEX

from .corpus.shuffle import uniform
from .tokenizer import Tokenizer

CHOSEN, MASKED, REPLACED = 0.15, 0.80, 0.10  # of the tokens; of the chosen ones (the last 10 % stay as they are)
SMOOTHING = 0.7  # of the peer's choice, by frequency
STRATEGIES = ("tokens", "words", "rare")


class Masking:
    """BERT's corruption, which equation (12) undoes, by one of three choices.

    tokens: every ordinary token is chosen with probability 15 %, on its own. words: every word is, with all its
    pieces (a word begins where a piece begins with ▁, and after a special token). rare: of each text, 15 % of its
    ordinary tokens, rarer ones more often: without replacement, by weights count^-0.7 (what the DistilBERT script
    does; there once a batch). counts: how often each id stands in the corpus, (|W|,), for rare only.

    Special tokens (<s>, </s>, <pad>, <unk>, <mask>) are never chosen. Of the chosen, 80 % become <mask>, 10 % a
    random token, drawn evenly from the whole ordinary vocabulary, and 10 % stay.
    """

    def __init__(self, tokenizer: Tokenizer, choice: str = STRATEGIES[0], counts: numpy.ndarray | None = None):
        self.tokenizer, self.choice = tokenizer, choice
        ids = range(len(tokenizer))
        if choice == "words":
            self.begins = numpy.array([piece.startswith("▁") for piece in tokenizer.pieces(ids)])
        if choice == "rare":
            self.weights = numpy.maximum(counts, 1).astype(numpy.float64) ** -SMOOTHING

    def __call__(self, input_ids: Tensor, keys: numpy.ndarray) -> tuple[Tensor, Tensor]:
        """input_ids (B, n) int64, keys (B,) uint64 -> corrupted (B, n), labels (B, n)

        The same key gives a text the same corruption. labels: the original where a token was chosen (also where it
        stays or is replaced), else -100.
        """
        ids, ordinary = input_ids.numpy(), self.tokenizer.ordinary_ids
        can_be = (ids >= ordinary.start) & (ids < ordinary.stop)
        draw, fate, which = (uniform(keys, ids.shape[1], stream) for stream in range(3))
        chosen = getattr(self, f"_{self.choice}")(ids, can_be, draw) & can_be
        random = ordinary.start + (which * len(ordinary)).astype(numpy.int64)
        masked = chosen & (fate < MASKED)
        replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
        corrupted = numpy.where(masked, self.tokenizer.mask_id, numpy.where(replaced, random, ids))
        return torch.from_numpy(corrupted), torch.from_numpy(numpy.where(chosen, ids, IGNORE_INDEX))

    def _tokens(self, ids: numpy.ndarray, can_be: numpy.ndarray, draw: numpy.ndarray) -> numpy.ndarray:
        return draw < CHOSEN

    def _words(self, ids: numpy.ndarray, can_be: numpy.ndarray, draw: numpy.ndarray) -> numpy.ndarray:
        """Each token's fate is that of its word's first."""
        begins = self.begins[ids] | ~can_be
        begins[:, 0] = True
        begins[:, 1:] |= ~can_be[:, :-1]
        first = numpy.maximum.accumulate(numpy.where(begins, numpy.arange(ids.shape[1]), 0), axis=1)
        return numpy.take_along_axis(draw, first, axis=1) < CHOSEN

    def _rare(self, ids: numpy.ndarray, can_be: numpy.ndarray, draw: numpy.ndarray) -> numpy.ndarray:
        """The first to arrive of exponential waiting times, whose rates are the weights: a draw one after another."""
        wait = numpy.where(can_be, -numpy.log1p(-draw) / self.weights[ids], numpy.inf)
        rank = wait.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        return rank < numpy.rint(CHOSEN * can_be.sum(axis=1, keepdims=True))
