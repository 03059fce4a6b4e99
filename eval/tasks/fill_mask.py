"""Prints the most likely tokens for each <mask> in a text: probability, token, and the text with it."""

from dataclasses import dataclass

import torch

from data import demo
from data.cli import check, check_bounds, option, parse_options
from data.download.models import fetch_models
from model import MaskedLM, encode_packed
from model.checkpoints.load import TOKENIZER_HELP, check_vocabulary, load_frozen, load_tokenizer
from model.training.device import INFERENCE_PRECISIONS, choose_precision

from .evaluate import SURROGATE


@dataclass(frozen=True)
class Options:
    text: tuple[str, ...] = option((), "texts with at least one <mask>", "input", positional=True, nargs="+")
    model: str = option("demo", "masked LM: path, or owner/name on the hub; or demo", metavar="MODEL")
    tokenizer: str | None = option(None, TOKENIZER_HELP, metavar="PATH")
    precision: str = option("fp32", "of the encoder", choices=INFERENCE_PRECISIONS)
    top: int = option(5, "tokens per mask", least=1, most=10**5)

    def __post_init__(self):
        check_bounds(self)
        for text in self.text:
            check(not SURROGATE.search(text), f"The text {text!r} is not UTF-8.")
            check("<mask>" in text, f"There is no <mask> in {text!r}.")


def main(arguments: list[str]) -> None:
    """The command `python -m eval fill-mask`.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, 'python -m eval fill-mask "… <mask> …" [OPTIONS]', __doc__)
    options = fetch_models(options, "model", "tokenizer")
    path = str(demo.TEACHER) if options.model == "demo" else options.model
    device = torch.device("cpu")
    model = load_frozen(path, MaskedLM, device, choose_precision(options.precision, device))
    tokenizer = load_tokenizer(options.tokenizer, path)
    check_vocabulary(model.config, tokenizer)
    for text in options.text:
        ids = tokenizer.encode(text)
        masks = [position for position, i in enumerate(ids) if i == tokenizer.mask_id]
        with torch.inference_mode():
            hidden = encode_packed(model.encoder, torch.tensor(ids), [len(ids)], [masks])  # (masks, d_h)
            probabilities = model.head(hidden.float()).softmax(dim=-1)  # (masks, |W|)
        for position, row in zip(masks, probabilities):
            best = row.topk(min(options.top, len(tokenizer)))
            for probability, i in zip(best.values.tolist(), best.indices.tolist()):
                filled = tokenizer.decode([*ids[:position], i, *ids[position + 1 :]])
                print(f"{probability:.5f}  {tokenizer.pieces([i])[0]:<20} {filled}")
            print()
