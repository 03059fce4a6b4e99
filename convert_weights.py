"""Converts checkpoints from Hugging Face and fairseq to this project's format, and back.

    python convert_weights.py IN OUT                     any checkpoint -> one .safetensors file of this project
    python convert_weights.py IN OUT --dtype int8        the same with the encoder's matrices in int8, a quarter in size
    python convert_weights.py IN OUT --to hf             any checkpoint -> a folder that transformers opens
    python convert_weights.py IN OUT --to onnx           any checkpoint -> a folder that ONNX Runtime and optimum open
    python convert_weights.py --check HF_FOLDER          compares every hidden state with transformers'

IN is owner/name[@revision], a model on the Hugging Face hub; a file of this project; a folder, .safetensors or .bin
(single or in shards, by its index) of Hugging Face; or a model.pt, folder or tarball of fairseq. The class of the model
(bare encoder, masked LM, sequence classifier, token classifier, question answerer) is recognised by its tensors. The
config.json beside the weights is read; without one, CamemBERT's values are assumed for what no tensor's shape shows,
and reported.
"""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from data.cli import check, check_bounds, note, option, parse_options, run_command
from data.download.models import fetch_models, local_path
from data.tokenizer import FILE_NAME
from model import Encoder, ModelError, save_model
from model.checkpoints.card import is_rounded, model_card
from model.checkpoints.export import export_huggingface
from model.checkpoints.licences import LICENCE_NAMES
from model.checkpoints.load import (
    as_kind,
    check_vocabulary,
    find_tokenizer,
    int8_file,
    load_checkpoint,
    load_tokenizer,
    weights_in,
)
from model.checkpoints.native import is_finite
from model.checkpoints.onnx import export_onnx
from model.checkpoints.provenance import provenance_of, read_metrics, read_results
from model.heads import MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier
from model.inference import PRECISIONS
from model.training.device import INFERENCE_PRECISIONS

KIND_CHOICES = {
    "encoder": Encoder,
    "masked-lm": MaskedLM,
    "sequence": SequenceClassifier,
    "token": TokenClassifier,
    "question": QuestionAnswerer,
}


FORMATS = ("ours", "hf", "onnx")


@dataclass(frozen=True)
class Options:
    source: str | None = option(
        None,
        "checkpoint to read: file, folder, or owner/name on the hub",
        "input and output",
        positional=True,
        metavar="IN",
        nargs="?",
    )
    target: str | None = option(
        None, "new file (with --to hf or onnx: new folder)", positional=True, metavar="OUT", nargs="?"
    )
    download: str | None = option(None, "the same as IN: owner/name on the hub", metavar="REPO")
    check: str | None = option(
        None, "compare IN (default: HF_FOLDER) with what transformers loads from HF_FOLDER", metavar="HF_FOLDER"
    )
    to: str = option(
        "ours", "a .safetensors file, or a folder for transformers or ONNX", "what to write", choices=FORMATS
    )
    kind: str | None = option(None, "required class of model; encoder drops the head", choices=tuple(KIND_CHOICES))
    fresh_head: bool = option(False, "add an untrained head to a bare encoder (--kind masked-lm or question)")
    dtype: str | None = option(
        None,
        "precision to write (default: that of IN; int8 becomes fp32 in other formats)",
        choices=INFERENCE_PRECISIONS,
    )
    tokenizer: str | None = option(
        None, "SentencePiece model to put into OUT (default: the one inside or beside IN)", metavar="PATH"
    )
    license: str | None = option(
        None, "for the model card (--to hf), as the hub writes it: mit, apache-2.0, …", metavar="NAME"
    )

    def __post_init__(self):
        check_bounds(self)
        listed = "https://huggingface.co/docs/hub/repositories-licenses"
        is_known = self.license is None or self.license in LICENCE_NAMES
        check(is_known, f"--license {self.license} is no name that the hub knows, such as mit: see {listed}.")
        check(self.license is None or self.to == "hf", "--license is for the model card: it needs --to hf.")
        in_int8 = self.to != "ours" and self.dtype == "int8"
        check(not in_int8, f"--dtype int8 is for this project's own files, not for --to {self.to}: leave one out.")
        in_fp32 = self.to != "onnx" or self.dtype in (None, "fp32")
        check(
            in_fp32, f"--to onnx writes fp32, not --dtype {self.dtype}: convert model.onnx with ONNX Runtime's tools."
        )
        has_onnx = self.to != "onnx" or find_spec("onnxscript") is not None
        check(has_onnx, "--to onnx needs two packages: pip install onnx onnxscript")
        if self.check is not None:
            check(self.target is None and self.download is None, "--check takes no OUT and no --download.")
            written = (self.to, self.kind, self.fresh_head, self.dtype, self.tokenizer)
            check(written == ("ours", None, False, None, None), "--check writes nothing: it takes IN only.")
            return
        check(self.download is None or self.target is None, "--download replaces IN: give OUT only.")
        target = self.source if self.download else self.target
        check(self.source is not None and target is not None, "IN and OUT are required; with --download, OUT only.")
        is_empty = os.path.isdir(target) and not os.path.islink(target) and not os.listdir(target)
        exists = os.path.lexists(target) and not (self.to != "ours" and is_empty)
        check(not exists, f"{target} already exists. Remove it, or choose another name.")
        can_be_new = not self.fresh_head or self.kind in ("masked-lm", "question")
        check(can_be_new, "--fresh-head requires --kind masked-lm or question (a classifier also needs labels).")


def main(arguments: list[str] | None = None) -> int:
    """The command -> its exit status.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, "python convert_weights.py IN OUT [OPTIONS]", __doc__)
    if options.check is not None:
        from eval.parity import compare  # requires transformers

        folder = local_path(options.check)
        return compare(local_path(options.source) if options.source else folder, folder)
    if options.download:
        options = replace(options, download=None, source=options.download, target=options.source)
    options = fetch_models(options, "source", "tokenizer")
    convert(local_path(options.source), options.source, Path(options.target), options)
    return 0


def convert(source: Path, origin: str, target: Path, options: Options) -> None:
    """Reads, writes, and prints what was written.  Raises DataError, ModelError.

    origin: what the source is called in the provenance: a path, or a repository on the hub.
    """
    loaded = load_checkpoint(source)
    was_rounded = is_rounded(loaded)
    model = as_kind(loaded, KIND_CHOICES.get(options.kind), options.fresh_head, source, note)
    dtype = "fp32" if options.to == "onnx" else options.dtype
    if options.to == "ours" and dtype is None and int8_file(source):
        dtype = "int8"
    if dtype:
        model = model.to(PRECISIONS.get(dtype, torch.float32))
        for name, tensor in model.state_dict().items():
            if not is_finite(tensor):
                raise ModelError(f"{name} has values too large for --dtype {dtype}. Use bf16 or fp32.")
    tokenizer = load_tokenizer(options.tokenizer, source) if options.tokenizer else find_tokenizer(source)
    if tokenizer:
        check_vocabulary(model.config, tokenizer)
    else:
        note(f"There is no {FILE_NAME} inside or beside {source}: {target} gets none. Name it with --tokenizer.")
    file = weights_in(source, lambda line: None)
    provenance = provenance_of(origin) or {"converted from": origin}
    if options.fresh_head and isinstance(loaded, Encoder):
        provenance["fresh_head"] = True
    if dtype == "int8":
        provenance["rounded"] = "int8"
    elif was_rounded or is_rounded(model):
        provenance.setdefault("rounded", True)
    if options.to == "ours":
        save_model(model, target, provenance, tokenizer, int8=dtype == "int8")
    elif options.to == "onnx":
        export_onnx(model, target, tokenizer)
    else:
        metrics = read_metrics(file.parent / "metrics.jsonl", provenance)
        results = read_results(file.parent / "results.json", provenance)
        name, has_tokenizer = target.absolute().name, tokenizer is not None
        card = model_card(model, name, provenance, metrics, results, options.license, has_tokenizer)
        export_huggingface(model, target, tokenizer, card)
    config, stored = model.config, "int8" if dtype == "int8" else next(model.parameters()).dtype
    labels = f", labels {', '.join(model.labels)}" if getattr(model, "labels", None) else ""
    inside = ", with its tokenizer" if tokenizer else ""
    print(
        f"{target}: {type(model).__name__}, {config.num_layers} layers, hidden size {config.hidden_size}, vocabulary "
        f"size {config.vocab_size:,}, {str(stored).removeprefix('torch.')}{labels}{inside}"
    )


if __name__ == "__main__":
    run_command("convert_weights.py", main, ModelError, on_interrupt="nothing was written")
