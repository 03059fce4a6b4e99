"""Checks a model's parameter count against equation (9), part by part.

python -m model.parameters                      the two models of Table 1
python -m model.parameters student.safetensors  a model: any checkpoint, or owner/name on the Hugging Face hub
"""

from dataclasses import dataclass

import torch
from torch import nn

from data.cli import option, parse_options, run_command

from .checkpoints.load import load_checkpoint
from .config import EncoderConfig, ModelError, count_layer_parameters, count_parameters
from .encoder import Encoder
from .heads import MaskedLM


@dataclass(frozen=True)
class Options:
    model: str | None = option(
        None, "model: path, or owner/name on the hub", "input", positional=True, nargs="?", metavar="MODEL"
    )


def parameter_report(model: nn.Module) -> str:
    """A table with one line per part: its parameters by equation (9), the number found, and what (9) leaves out.

    model: an Encoder, or a model with one as `.encoder`.
    Raises ModelError, with the whole table, if any part of the encoder differs from equation (9).
    """
    encoder = model if isinstance(model, Encoder) else model.encoder
    config = encoder.config
    d = config.hidden_size
    rows = [  # part, by equation (9), found
        ("word embeddings  d_h |W|", d * config.vocab_size, size(encoder.embeddings.word)),
        ("position embeddings  d_h |E|", d * config.max_positions, size(encoder.embeddings.position)),
        ("LayerNorm of H_0  2 d_h", 2 * d, size(encoder.embeddings.norm)),
        *(
            (f"layer {number}  4 d_h² + 2 d_h E + 9 d_h + E", count_layer_parameters(config), size(layer))
            for number, layer in enumerate(encoder.layers, start=1)
        ),
        ("encoder", count_parameters(config), size(encoder)),
    ]
    wrong = [name for name, expected, counted in rows if expected != counted]
    heads = {}  # parameters outside the encoder, by the name of their part
    for name, parameter in model.named_parameters():
        if model is not encoder and not name.startswith("encoder."):
            part = name.split(".")[0]
            heads[part] = heads.get(part, 0) + parameter.numel()
    kind = type(model).__name__
    lines = [
        f"{kind}: L = {config.num_layers}, d_h = {d}, J = {config.num_heads}, E = {config.intermediate_size}, "
        f"|W| = {config.vocab_size}, |E| = {config.max_positions}",
        f"  {'':44}{'equation (9)':>14}{'counted':>14}",
        *(f"  {name:44}{expected:>14,}{counted:>14,}" for name, expected, counted in rows),
    ]
    if heads:
        lines += [f"  {f'{kind} head, {part}':44}{'not in (9)':>14}{count:>14,}" for part, count in heads.items()]
        if isinstance(model, MaskedLM):
            lines.append(f"  {'MaskedLM head, decoder (the word embeddings)':44}{'not in (9)':>14}{'tied':>14}")
        lines.append(f"  {'model':44}{'':>14}{size(model):>14,}")
    text = "\n".join(lines)
    if wrong:
        raise ModelError(f"The encoder does not agree with equation (9): {', '.join(wrong)}.\n{text}")
    return text


def size(module: nn.Module) -> int:
    """The number of parameters of a module; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    options = parse_options(Options, None, "python -m model.parameters [MODEL]", __doc__)
    if options.model is not None:
        print(parameter_report(load_checkpoint(options.model)))
        return
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        print("CamemBERT, the teacher of Table 1")
        print(parameter_report(MaskedLM(EncoderConfig.camembert())))
        print("\nDistilCamemBERT, the student of Table 1")
        print(parameter_report(MaskedLM(EncoderConfig.distilcamembert())))


if __name__ == "__main__":
    run_command("model.parameters", main, ModelError)
