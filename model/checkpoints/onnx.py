"""Writes a model as a folder that ONNX Runtime and Hugging Face's optimum open. Needs the packages onnx and onnxscript.

The folder holds model.onnx, config.json and, if given, the tokenizer's files. The graph is float32 and takes any batch
size and length: input_ids and attention_mask, (batch, tokens) int64, to the outputs that optimum names.
"""

import logging
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from data import Tokenizer

from ..encoder import Encoder
from ..heads import QuestionAnswerer
from .export import write_config
from .native import atomic_file

OPSET = 20  # the first with Gelu, which ONNX Runtime fuses with the bias before it
INPUTS = ("input_ids", "attention_mask")
OUTPUTS = {Encoder: ("last_hidden_state",), QuestionAnswerer: ("start_logits", "end_logits")}  # of the others: logits


def export_onnx(model: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Writes a float32 model to a new folder, which appears under its name only when it is complete.

    Raises ImportError without onnxscript, ModelError if the folder cannot be written.
    """
    with atomic_file(folder, as_folder=True) as temporary:
        write_onnx(model, temporary / "model.onnx")
        write_config(model, temporary, tokenizer)


def write_onnx(model: nn.Module, path: Path) -> None:
    """Writes the graph alone, of a float32 model in evaluation mode.  Raises ImportError without onnxscript."""
    import onnxscript

    example = torch.full((2, 3), model.config.pad_id + 1), torch.ones(2, 3, dtype=torch.int64)
    names = OUTPUTS.get(type(model), ("logits",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of axes, and torch's own use of what it deprecates
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else a warning that torchvision is not installed
        program = torch.onnx.export(
            StartAndEnd(model) if type(model) is QuestionAnswerer else model,
            example,
            input_names=INPUTS,
            output_names=names,
            dynamic_shapes=({0: "batch", 1: "tokens"},) * 2,
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attention(onnxscript)},
            dynamo=True,
            verbose=False,
        )
        program.save(path)


class StartAndEnd(nn.Module):
    """A QuestionAnswerer with two outputs of shape (B, n), as in transformers."""

    def __init__(self, model: QuestionAnswerer):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(input_ids, attention_mask).unbind(dim=-1)


def attention(onnxscript):
    """softmax(Q K^T / sqrt(d_h / J)) V in ONNX's operators; torch's own translation searches the n × n maps for NaN.

    Padding gets the lowest finite score, as in `scaled_dot_product`.
    """
    op = onnxscript.opset20

    def heads(queries, keys, values, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        scores = op.MatMul(queries, op.Transpose(keys, perm=[0, 1, 3, 2]))
        scores = op.Mul(scores, op.Constant(value_float=1 / math.sqrt(queries.shape[-1])))
        added = op.Where(
            attn_mask, op.Constant(value_float=0.0), op.Constant(value_float=torch.finfo(torch.float32).min)
        )
        return op.MatMul(op.Softmax(op.Add(scores, added), axis=-1), values)

    return heads
