"""Heads on top of the encoder: the masked-LM head of pre-training and the three task heads of section 4.

Each model has `.encoder`, `.config` and, if it has classes, `.labels`, their names in the order of its outputs.
Shapes: B sequences, n tokens, d_h hidden size, |W| vocabulary size, C classes.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig, ModelError
from .dropout import Dropout
from .encoder import Encoder, initialise

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")  # Hugging Face's names


class MaskedLM(nn.Module):
    """The masked language model: teacher and student of section 3.

    input_ids: (B, n), attention_mask: (B, n) bool or None -> logits over the vocabulary, (B, n, |W|).
    The decoder is tied to the word embeddings: it *is* that matrix, so the two cannot diverge.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self.dense, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(input_ids, attention_mask))

    def head(self, hidden: Tensor) -> Tensor:
        """H_L -> logits.  (…, d_h) -> (…, |W|).  The bias is added once, here.

        The decoder may be in less than the states' precision: that of an encoder frozen for inference.
        """
        state = self.transform(hidden)
        return F.linear(state, self.decoder.to(state.dtype), self.bias)

    def transform(self, hidden: Tensor) -> Tensor:
        """H_L -> the decoder's input, LayerNorm(GELU(W h + b)).  (…, d_h) -> (…, d_h)

        RoBERTa's head uses GELU whatever the encoder's activation is.
        """
        return self.norm(F.gelu(self.dense(hidden)))

    @property
    def decoder(self) -> Tensor:
        """The word embeddings, (|W|, d_h)."""
        return self.encoder.embeddings.word.weight


class SequenceClassifier(nn.Module):
    """One class per sequence (sentiment, NLI), from the state of the first token, `<s>`.  -> logits (B, C)

    dropout, dense, tanh, dropout, linear, as in RoBERTa. problem_type says what the outputs mean: logits of a softmax,
    of one sigmoid per label, or values (regression).
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_labels: int,
        labels: Sequence[str] | None = None,
        problem_type: str | None = None,
    ):
        super().__init__()
        self.config = config
        self.labels = label_names(num_labels, labels)
        self.problem_type = check_problem_type(problem_type, num_labels)
        self.encoder = Encoder(config)
        self.dropout = Dropout(config.dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, num_labels)
        initialise(self.dense, config.hidden_size)
        initialise(self.output, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(input_ids, attention_mask)[:, 0])

    def head(self, first: Tensor) -> Tensor:
        """The states of `<s>`, (B, d_h) -> (B, C)"""
        return self.output(self.dropout(torch.tanh(self.dense(self.dropout(first)))))


class TokenClassifier(nn.Module):
    """One class per token (named entities): dropout, linear.  -> logits (B, n, C)"""

    def __init__(self, config: EncoderConfig, num_labels: int, labels: Sequence[str] | None = None):
        super().__init__()
        self.config = config
        self.labels = label_names(num_labels, labels)
        self.encoder = Encoder(config)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(config.hidden_size, num_labels)
        initialise(self.output, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(input_ids, attention_mask))

    def head(self, hidden: Tensor) -> Tensor:
        """(…, d_h) -> (…, C)"""
        return self.output(self.dropout(hidden))


class QuestionAnswerer(nn.Module):
    """Start and end of the answer in the context (extractive question answering): linear.  -> logits (B, n, 2)

    no_answer_threshold: there is no answer where the logits of `<s>` exceed those of the best span by more than this;
    None for a model that always answers.
    """

    def __init__(self, config: EncoderConfig, no_answer_threshold: float | None = None):
        super().__init__()
        if no_answer_threshold is not None and not is_finite_number(no_answer_threshold):
            raise ModelError(f"no_answer_threshold is {no_answer_threshold!r:.100}; a finite number is needed.")
        self.config = config
        self.no_answer_threshold = no_answer_threshold
        self.encoder = Encoder(config)
        self.output = nn.Linear(config.hidden_size, 2)
        initialise(self.output, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(input_ids, attention_mask))

    def head(self, hidden: Tensor) -> Tensor:
        """(…, d_h) -> (…, 2)"""
        return self.output(hidden)


def label_names(num_labels: int, labels: Sequence[str] | None) -> tuple[str, ...]:
    """The given names, or Hugging Face's default LABEL_0, LABEL_1, …  Raises ModelError if they do not fit."""
    if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
        raise ModelError(f"num_labels is {num_labels!r}; a classifier needs at least 1.")
    names = tuple(f"LABEL_{i}" for i in range(num_labels)) if labels is None else tuple(labels)
    if len(names) != num_labels or len(set(names)) != num_labels:
        raise ModelError(f"{num_labels} different label names are needed, not {list(names)}.")
    return names


def check_problem_type(problem_type: str | None, num_labels: int) -> str:
    """The given one; by default regression for a single output, whose softmax is always 1, else one label of several.

    Raises ModelError for an unknown one, and for a softmax of a single output.
    """
    if problem_type is None:
        return "regression" if num_labels == 1 else "single_label_classification"
    if problem_type not in PROBLEM_TYPES:
        raise ModelError(f"problem_type is {problem_type!r:.100}, not one of {', '.join(PROBLEM_TYPES)}.")
    if problem_type == "single_label_classification" and num_labels == 1:
        raise ModelError(f"problem_type {problem_type} needs at least 2 labels: the softmax of one is always 1.")
    return problem_type


def is_finite_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
