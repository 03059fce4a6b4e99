"""Equation (9): how many parameters an encoder has, and the check against a real one.

python -m model.parameters                    the two rows of Table 1
python -m model.parameters student.safetensors    a model of yours
"""

import sys

import torch
from torch import nn

from .checkpoint import load_model
from .config import EncoderConfig, ModelError
from .encoder import Encoder
from .heads import MaskedLM


def layer_parameters(config: EncoderConfig) -> int:
    """What equation (9) multiplies by L: 4 d_h² + 2 d_h E + 9 d_h + E.

    4 d_h² for Q, K, V and the mix, 2 d_h E for the feed-forward matrices, 9 d_h for the biases of Q, K, V,
    the mix and the feed-forward output (5) and two LayerNorms (4), E for the feed-forward's inner bias.
    """
    d, e = config.hidden_size, config.intermediate_size
    return 4 * d**2 + 2 * d * e + 9 * d + e


def count_parameters(config: EncoderConfig) -> int:
    """Equation (9), section 2.  p = L (4 d_h² + 2 d_h E + 9 d_h + E) + d_h (|W| + |E| + 2)

    The layers, then before them a row a word and a position, and one LayerNorm (2). No head is counted.
    Hugging Face's encoder has d_h more, its token-type row, which we fold into the position rows.
    """
    before = config.hidden_size * (config.vocab_size + config.max_positions + 2)
    return config.num_layers * layer_parameters(config) + before


def account(model: nn.Module) -> str:
    """Equation (9) against a real model, line by line: what it says, what is there, and what it leaves out.

    model: an Encoder, or a model with one as `.encoder`.
    Raises ModelError, with the whole account, if any part of the encoder is not what equation (9) says.
    """
    encoder = model if isinstance(model, Encoder) else model.encoder
    config = encoder.config
    d = config.hidden_size
    rows = [  # name, by equation (9), counted
        ("word embeddings  d_h |W|", d * config.vocab_size, size(encoder.embeddings.word)),
        ("position embeddings  d_h |E|", d * config.max_positions, size(encoder.embeddings.position)),
        ("LayerNorm of H_0  2 d_h", 2 * d, size(encoder.embeddings.norm)),
        *(
            (f"layer {number}  4 d_h² + 2 d_h E + 9 d_h + E", layer_parameters(config), size(layer))
            for number, layer in enumerate(encoder.layers, start=1)
        ),
        ("encoder", count_parameters(config), size(encoder)),
    ]
    wrong = [name for name, expected, counted in rows if expected != counted]
    left_out = {}  # every parameter outside the encoder, by the name of its part
    for name, parameter in model.named_parameters():
        if model is not encoder and not name.startswith("encoder."):
            part = name.split(".")[0]
            left_out[part] = left_out.get(part, 0) + parameter.numel()
    kind = type(model).__name__
    lines = [
        f"{kind}: L = {config.num_layers}, d_h = {d}, J = {config.num_heads}, E = {config.intermediate_size}, "
        f"|W| = {config.vocab_size}, |E| = {config.max_positions}",
        f"  {'':44}{'equation (9)':>14}{'counted':>14}",
        *(f"  {name:44}{expected:>14,}{counted:>14,}" for name, expected, counted in rows),
    ]
    if left_out:
        lines += [f"  {f'{kind} head, {part}':44}{'left out':>14}{count:>14,}" for part, count in left_out.items()]
        if isinstance(model, MaskedLM):
            lines.append(f"  {'MaskedLM head, decoder (the word embeddings)':44}{'left out':>14}{'tied':>14}")
        lines.append(f"  {'model':44}{'':>14}{size(model):>14,}")
    text = "\n".join(lines)
    if wrong:
        raise ModelError(f"The encoder is not what equation (9) says: {', '.join(wrong)}.\n{text}")
    return text


def size(module: nn.Module) -> int:
    """How many parameters a module has; one that is used twice counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def main(arguments: list[str]) -> None:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(__doc__)
        sys.exit(0 if arguments in (["-h"], ["--help"]) else 2)
    if arguments:
        print(account(load_model(arguments[0])))
        return
    with torch.device("meta"):  # shapes without memory: nothing is drawn or stored
        print("CamemBERT, the teacher of Table 1")
        print(account(MaskedLM(EncoderConfig.camembert())))
        print("\nDistilCamemBERT, the student of Table 1")
        print(account(MaskedLM(EncoderConfig.distilcamembert())))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ModelError as error:
        print(f"model.parameters: {error}", file=sys.stderr)
        sys.exit(2)
