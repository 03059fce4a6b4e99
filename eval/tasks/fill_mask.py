"""What a masked LM puts in the place of <mask>."""

from dataclasses import dataclass

import torch

from data import demo
from data.cli import check, check_bounds, option, parse_options
from model import MaskedLM
from model.checkpoints.load import check_vocabulary, load_checkpoint, load_tokenizer

from ..results import HALF


@dataclass(frozen=True)
class Options:
    """What is asked of which model."""

    text: tuple[str, ...] = option((), "a text with <mask> in it", "what is asked", positional=True, nargs="+")
    model: str = option("demo", "a masked LM, ours or Hugging Face's; or demo", metavar="FILE")
    tokenizer: str | None = option(None, "SentencePiece model (default: the one beside the model)", metavar="FILE")
    top: int = option(5, "candidates a mask", least=1, most=10**5)

    def __post_init__(self):
        check_bounds(self)
        for text in self.text:
            check(not HALF.search(text), f"The text {text!r} is not UTF-8.")
            check("<mask>" in text, f"There is no <mask> in {text!r}.")


def main(arguments: list[str]) -> None:
    """The command.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, 'python -m eval fill-mask "… <mask> …" [--model FILE]', __doc__)
    path = str(demo.TEACHER) if options.model == "demo" else options.model
    model = load_checkpoint(path, kind=MaskedLM).float().eval()
    tokenizer = load_tokenizer(options.tokenizer, path)
    check_vocabulary(model.config, tokenizer)
    for text in options.text:
        ids = torch.tensor([tokenizer.encode(text)])
        places = (ids[0] == tokenizer.mask_id).nonzero().flatten().tolist()
        with torch.inference_mode():
            hidden = model.encoder(ids)[0, places]  # (masks, d_h)
            probabilities = model.head(hidden).softmax(dim=-1)
        for place, row in zip(places, probabilities):
            best = row.topk(min(options.top, len(tokenizer)))
            for share, i in zip(best.values.tolist(), best.indices.tolist()):
                filled = ids[0].clone()
                filled[place] = i
                print(f"{share:.5f}  {tokenizer.pieces([i])[0]:<20} {tokenizer.decode(filled.tolist())}")
            print()
