"""Brings others' checkpoints over, and ours back.

    python convert_weights.py IN OUT                     anyone's checkpoint -> one .safetensors of this project
    python convert_weights.py IN OUT --to hf             anyone's -> a folder that transformers opens
    python convert_weights.py --download REPO OUT        the same from Hugging Face's hub
    python convert_weights.py --check HF_FOLDER          is every hidden state the same as in transformers?

IN is a file of this project; or of Hugging Face: a folder, a .safetensors, whole or in shards with their index, or a
.bin; or fairseq's: a model.pt, its folder or its tarball. Bare encoders, masked LMs, sequence classifiers, token
classifiers and question answerers are told apart by what the file holds. The config.json beside the weights is read;
without one, what the shapes do not show is CamemBERT's, and said.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from data import DataError, Tokenizer
from data.cli import check, check_bounds, option, parse_options, run_command
from data.download import hub
from data.tokenizer import FILE_NAME, tokenizer_beside
from model import (
    Encoder,
    MaskedLM,
    ModelError,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
    save_model,
)
from model.checkpoints.card import last_metrics, model_card
from model.checkpoints.export import export_huggingface
from model.checkpoints.load import load_checkpoint, print_note, unpacked, weights_in
from model.checkpoints.names import CLASSES
from model.checkpoints.native import (
    PRECISIONS,
    is_finite,
    is_native,
    is_safetensors,
    read_metadata,
)

# ---- in --------------------------------------------------------------------------------------------------------






















# ---- out -------------------------------------------------------------------------------------------------------










# ---- the command -----------------------------------------------------------------------------------------------

KIND_WORDS = {
    "encoder": Encoder,
    "masked-lm": MaskedLM,
    "sequence": SequenceClassifier,
    "token": TokenClassifier,
    "question": QuestionAnswerer,
}


@dataclass(frozen=True)
class Options:
    source: str | None = option(
        None, "a file or folder of this project, of Hugging Face or of fairseq", "from and to", positional=True,
        metavar="IN", nargs="?",
    )  # fmt: skip
    target: str | None = option(
        None, "the file to write, or with --to hf the folder; it must not be there yet", positional=True,
        metavar="OUT", nargs="?",
    )  # fmt: skip
    download: str | None = option(
        None, "instead of IN: a model on Hugging Face's hub, as almanach/camembert-base", metavar="REPO"
    )
    check: str | None = option(
        None, "instead of OUT: a folder of Hugging Face's, with whose transformers model IN (by default what this "
        "folder becomes here) is compared, state by state", metavar="HF_FOLDER"
    )  # fmt: skip
    to: str = option(
        "ours", "what to write: one .safetensors of this project, or a folder for transformers", "what to write",
        choices=("ours", "hf")
    )  # fmt: skip
    kind: str | None = option(
        None, "the kind of model that IN must be; encoder takes it out of any", choices=tuple(KIND_WORDS)
    )
    fresh_head: bool = option(False, "with --kind masked-lm or question: a bare encoder gets a head, at random")
    dtype: str | None = option(None, "precision to write (default: that of IN)", choices=tuple(PRECISIONS))
    tokenizer: str | None = option(
        None, "SentencePiece model to put into the folder (default: the one beside IN, if there is one)",
        metavar="FILE"
    )  # fmt: skip

    def __post_init__(self):
        check_bounds(self)
        if self.check is not None:
            check(self.target is None and self.download is None, "--check takes IN at most, and writes nothing.")
            written = (self.to, self.kind, self.fresh_head, self.dtype, self.tokenizer)
            check(written == ("ours", None, False, None, None), "--check takes no option that says what to write.")
            return
        given = [self.source, self.target] if self.download is None else [self.target or self.source]
        check(all(given), "IN and OUT are needed (with --download, OUT alone): what to read, and what to write.")
        check(self.download is None or self.target is None, "--download stands in place of IN: give OUT alone.")
        target = Path(given[-1])
        is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
        taken = os.path.lexists(target) and not (self.to == "hf" and is_empty)
        check(not taken, f"{target} is there already. Remove it, or choose another name.")
        check(self.to == "hf" or self.tokenizer is None, "--tokenizer goes with --to hf: our file holds no tokenizer.")
        drawn = not self.fresh_head or self.kind in ("masked-lm", "question")
        check(drawn, "--fresh-head goes with --kind masked-lm or --kind question; classifiers get theirs with labels.")


def main(arguments: list[str] | None = None) -> int:
    """The command; -> its exit status.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, "python convert_weights.py IN OUT [OPTIONS]", __doc__)
    if options.check is not None:
        from eval.parity import compare  # needs transformers

        return compare(options.source or options.check, options.check)
    source = hub.download(options.download) if options.download else Path(options.source)
    convert(source, Path(options.target or options.source), options)
    return 0


def convert(source: Path, target: Path, options: Options) -> None:
    """Reads, says what it is, writes.  Raises DataError, ModelError."""
    kind = KIND_WORDS[options.kind] if options.kind else None
    model = load_checkpoint(source, kind=kind, fresh_head=options.fresh_head)
    if options.dtype:
        model = model.to(PRECISIONS[options.dtype])
        for name, tensor in model.state_dict().items():
            if not is_finite(tensor):
                raise ModelError(f"{name} has numbers too large for --dtype {options.dtype}. Take bf16 or fp32.")
    known, metrics = what_is_known(source, options)
    if options.to == "ours":
        save_model(model, target, {**known, "converted from": str(options.download or source)})
    else:
        card = model_card(CLASSES[type(model).__name__], model.config.num_layers, known, metrics)
        with unpacked(source) as place:
            tokenizer = options.tokenizer or tokenizer_beside(place)
            if tokenizer is not None:
                tokenizer = Tokenizer(tokenizer)
                if len(tokenizer) != model.config.vocab_size:
                    raise DataError(
                        f"The tokenizer {tokenizer.path} has {len(tokenizer)} words, the model "
                        f"{model.config.vocab_size}: they do not belong together. Name the model's own with "
                        "--tokenizer."
                    )
            else:
                print_note(f"no {FILE_NAME} lies beside {source}: the folder gets none. Name it with --tokenizer.")
            export_huggingface(model, target, tokenizer.path if tokenizer else None, card)
    config = model.config
    labels = f", labels {', '.join(model.labels)}" if getattr(model, "labels", None) else ""
    print(
        f"{target}: {type(model).__name__}, {config.num_layers} layers of {config.hidden_size}, "
        f"{config.vocab_size} words, {str(next(model.parameters()).dtype).removeprefix('torch.')}{labels}"
    )


def what_is_known(source: Path, options: Options) -> tuple[dict, dict]:
    """Of how a model was made: what our file says, and the last metrics of the run that it lies in."""
    file = weights_in(source, lambda line: None)
    if is_safetensors(file) and is_native(metadata := read_metadata(file)):
        try:
            provenance = json.loads(metadata.get("provenance", "null"))
        except (ValueError, RecursionError):
            provenance = None
        if isinstance(provenance, dict):
            return provenance, last_metrics(file.parent / "metrics.jsonl") if "options" in provenance else {}
    return {"converted from": str(options.download or source)}, {}


if __name__ == "__main__":
    run_command("convert_weights.py", main, ModelError, on_interrupt="nothing was written")
