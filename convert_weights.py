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

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from data import DataError, OptionError, Tokenizer
from data.checkpoints import fairseq, hub, huggingface, pickles, tarball
from data.checkpoints.card import last_metrics, model_card
from data.checkpoints.huggingface import TOKEN_TYPE, Report
from data.checkpoints.names import CLASSES, CONFIG_KEYS, HEAD_KEYS, from_huggingface_key, to_huggingface_key
from data.options import check, check_bounds, option, parse_options
from data.tokenizer import FILE_NAME, tokenizer_beside
from eval.machine import PRECISIONS
from model import (
    Encoder,
    EncoderConfig,
    MaskedLM,
    ModelError,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
    load_model,
    save_model,
)
from model.checkpoint import (
    KINDS,
    assemble,
    check_file,
    flush,
    is_finite,
    is_ours,
    is_safetensors,
    read_metadata,
    read_safetensors,
    usual_mode,
)

HEAD_SIZE = 64  # of every released CamemBERT; the one number that no shape shows
WEIGHTS = (  # what a folder is taken for, the first that it holds
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "model.pt",
    "student.safetensors",  # that of a run of train.py
)

# ---- in --------------------------------------------------------------------------------------------------------


def print_note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def load_checkpoint(
    path: str | Path, report: Report = print_note, kind: type | None = None, fresh_head: bool = False
) -> nn.Module:
    """A model from anyone's checkpoint.

    path: this project's file; a folder, .safetensors, index of shards or .bin of Hugging Face's transformers;
    a model.pt, folder or tarball of fairseq. Pickles are read as tensors only: no code in them can run. What kind of
    model it is, its tensors tell. The file's precision is kept; the model is in evaluation mode.
    report: gets a sentence for everything that is assumed or left out.
    kind: the kind that is wanted. Of any model, an Encoder can be had; of a bare encoder, a MaskedLM or a
    QuestionAnswerer with fresh_head, which is then drawn at random.
    Raises ModelError, naming the file and the cure.
    """
    place = path = Path(path)

    def by_its_name(sentence: object) -> str:  # and not by that of the folder that a tarball was unpacked into
        return str(sentence).replace(str(place), str(path))

    def report_by_its_name(line: str) -> None:
        report(by_its_name(line))

    try:
        with opened(path) as place:
            model = load(weights_in(place, report_by_its_name), report_by_its_name)
            return as_kind(model, kind, fresh_head, path, report)
    except (ModelError, DataError) as error:
        raise ModelError(by_its_name(error)) from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The path itself; while it lasts, the unpacked folder of a tarball.  Raises DataError."""
    if not path.is_file() or not tarball.is_tarball(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield tarball.open_tarball(path, Path(folder)).parent


def weights_in(path: Path, report: Report) -> Path:
    """The file itself; of a folder, the one with the weights.  Raises ModelError."""
    if path.is_dir():
        names = [name for name in WEIGHTS if (path / name).is_file()]
        if not names:
            raise ModelError(f"The folder {path} holds none of {', '.join(WEIGHTS)}.")
        if names[1:]:
            report(f"{path} holds {' and '.join(names)}; {names[0]} is taken.")
        path = path / names[0]
    check_file(path)
    return path


def load(path: Path, report: Report) -> nn.Module:
    """The model in a file, of the kind that it is.  Raises ModelError, DataError."""
    if path.name.endswith(".index.json"):
        tensors = read_shards(path)
    elif is_safetensors(path):
        if is_ours(read_metadata(path)):
            return load_model(path)
        tensors = read_safetensors(path)[1]
    else:
        tensors = pickles.read_pickle(path, report)
    values = huggingface.read_config(path.parent)
    if fairseq.is_fairseq(tensors):
        tensors, told = fairseq.to_huggingface_names(tensors, path, report)
        for key in sorted(key for key in told.keys() & values.keys() if told[key] != values[key]):
            report(f"{path} says {key} {told[key]}, and is believed; {path.parent / 'config.json'} says another.")
        values = {**values, **told}
    return from_huggingface(tensors, values, path, report)


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names.  Raises ModelError, DataError."""
    result = {}
    for name, keys in huggingface.shard_files(index).items():
        tensors = read_safetensors(index.parent / name)[1]
        for key in sorted({*keys} ^ tensors.keys()):
            raise ModelError(f"{index.parent / name} and {index} disagree about the tensor {key}. Fetch both anew.")
        result.update(tensors)
    return result


def from_huggingface(tensors: Mapping[str, Tensor], values: Mapping, path: Path, report: Report) -> nn.Module:
    """A model from Hugging Face's tensors and the values of its config.json.  Raises ModelError, DataError.

    Each tensor of the file is used once or dropped with its reason; none is passed over.
    """
    tensors = huggingface.clean(tensors, path, report)
    kind = kind_of(tensors, path)
    config = config_from(values, tensors, path, report)
    head = ()
    if kind in (SequenceClassifier, TokenClassifier):
        name = HEAD_KEYS[kind.__name__]["output.weight"]
        output = tensors.get(name)
        if output is None or output.ndim != 2 or output.shape[1] != config.hidden_size:
            raise ModelError(
                f"{path} lacks the tensor {name}, or its shape is not (classes, "
                f"{config.hidden_size}): it is cut short or damaged."
            )
        count = len(output)
        head = count, huggingface.label_names(values, count, path, report)
    renamed = {from_huggingface_key(key, kind.__name__): key for key in tensors}
    if None in renamed:
        raise ModelError(f"{path} has a tensor {renamed[None]} that a {kind.__name__} has no place for.")
    with torch.device("meta"):  # so that a missing tensor has the file's name too
        one_layer = kind(EncoderConfig(1, 1, 1, 1, 2, 3), *head).state_dict()
    names = {ours: to_huggingface_key(ours, kind.__name__).removeprefix("roberta.") for ours in one_layer}
    first = {ours: theirs for ours, theirs in names.items() if "layers.0." in ours}
    for number in range(1, min(config.num_layers, len(tensors) // len(first) + 2)):
        for ours, theirs in first.items():
            names[ours.replace("layers.0.", f"layers.{number}.")] = theirs.replace(".0.", f".{number}.")
    names.update(renamed)
    return assemble(kind, config, head, {ours: tensors[key] for ours, key in renamed.items()}, path, names)


def kind_of(tensors: Mapping[str, Tensor], path: Path) -> type:
    """The kind of model that the tensors' names are of.  Raises ModelError if they are of two."""
    for prefix, other in (("cls.", "BERT"), ("distilbert.", "DistilBERT")):
        if any(key.startswith(prefix) for key in tensors):
            raise ModelError(f"{path} is a {other}: another architecture than CamemBERT's.")
    kinds = [kind for kind, keys in HEAD_KEYS.items() if any(key in tensors for key in keys.values())]
    if len(kinds) > 1:
        raise ModelError(f"{path} has the heads of a {' and of a '.join(kinds)}.")
    return KINDS[kinds[0]] if kinds else Encoder


def as_kind(model: nn.Module, kind: type | None, fresh_head: bool, path: str | Path, report: Report) -> nn.Module:
    """The model as a model of another kind, as far as that can be.  Raises ModelError."""
    if kind is None or isinstance(model, kind):
        if fresh_head:
            report(f"{path} has the head of a {type(model).__name__}, which is kept: no fresh one was drawn.")
        return model
    if kind is Encoder:
        return model.encoder
    if not isinstance(model, Encoder):
        raise ModelError(f"{path} is a {type(model).__name__}, not a {kind.__name__}.")
    if kind in (SequenceClassifier, TokenClassifier):
        raise ModelError(f"{path} is a bare encoder: the head of a {kind.__name__} is missing, with its labels.")
    if not fresh_head:
        raise ModelError(
            f"{path} is a bare encoder: the head of a {kind.__name__} is missing. Take the file that has it, or ask "
            "for a fresh one (--fresh-head), which knows nothing yet."
        )
    fresh = kind(model.config).to(next(model.parameters()).dtype)
    fresh.encoder = model
    return fresh.eval()


def config_from(values: Mapping, tensors: Mapping[str, Tensor], path: Path, report: Report) -> EncoderConfig:
    """config.json's values, else what the shapes show, else CamemBERT's, which is said.  Raises ModelError."""
    beside = path.parent / "config.json"
    known = {ours: values[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in values}
    shown = huggingface.shapes_show(tensors)
    assumed = [name for name in CONFIG_KEYS if name not in known and name not in shown]
    settings = {**shown, **known}
    if "num_heads" in assumed:
        settings["num_heads"] = max(1, settings["hidden_size"] // HEAD_SIZE)
    try:
        config = EncoderConfig(**settings)
    except ModelError as error:
        raise ModelError(f"{beside if beside.exists() else path} describes no CamemBERT: {error}") from None
    if assumed:
        said = ", ".join(f"{name} {getattr(config, name)}" for name in assumed)
        lack = "does not say everything" if beside.exists() else "is not there"
        report(f"{beside} {lack}; assumed, as CamemBERT's: {said}.")
    if values.get("attention_probs_dropout_prob", config.dropout) != config.dropout:
        report(
            f"{beside} has two dropouts; one is kept for both, hidden_dropout_prob {config.dropout} "
            f"(attention_probs_dropout_prob was {values['attention_probs_dropout_prob']})."
        )
    for key in ("problem_type", "classifier_dropout"):  # losses and dropouts of a training to come, not of the model
        if values.get(key) not in (None, "single_label_classification", config.dropout):
            report(f"{beside} says {key} {values[key]!r:.100}, which is not kept: give it to transformers again.")
    return config


# ---- out -------------------------------------------------------------------------------------------------------


def huggingface_config(model: nn.Module) -> dict:
    """The config.json of a model, as transformers reads it."""
    config = {theirs: getattr(model.config, ours) for ours, theirs in CONFIG_KEYS.items()}
    labels = {}
    if getattr(model, "labels", None):
        labels = {
            "id2label": {str(number): name for number, name in enumerate(model.labels)},
            "label2id": {name: number for number, name in enumerate(model.labels)},
        }
    return {
        "architectures": [CLASSES[type(model).__name__]],
        "model_type": "camembert",
        **config,
        **labels,
        "attention_probs_dropout_prob": model.config.dropout,
        "type_vocab_size": 1,
        "bos_token_id": Tokenizer.bos_id,
        "eos_token_id": Tokenizer.eos_id,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def to_huggingface(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors under Hugging Face's names, with a token-type row of zeros: ours is in the positions."""
    kind = type(model).__name__
    tensors = {to_huggingface_key(key, kind): tensor.contiguous() for key, tensor in model.state_dict().items()}
    dtype = next(model.parameters()).dtype
    tensors[("" if kind == "Encoder" else "roberta.") + TOKEN_TYPE] = torch.zeros(
        1, model.config.hidden_size, dtype=dtype
    )
    return tensors


def export_huggingface(
    model: nn.Module, folder: str | Path, tokenizer: str | Path | None = None, card: str | None = None
) -> None:
    """Write config.json, model.safetensors, the tokenizer's files and the model card, if given, into a new folder.

    The folder gets its name when it is complete. Raises ModelError where it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            save_file(to_huggingface(model), temporary / "model.safetensors", metadata={"format": "pt"})
            texts = {"config.json": json.dumps(huggingface_config(model), indent=2, sort_keys=True) + "\n"}
            if tokenizer is not None:
                shutil.copyfile(tokenizer, temporary / FILE_NAME)
                texts["tokenizer_config.json"] = json.dumps(tokenizer_config(model.config), indent=2) + "\n"
            if card is not None:
                texts["README.md"] = card
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                flush(path)
                usual_mode(path)
            temporary.rename(folder)  # refuses a folder with something in it
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def tokenizer_config(config: EncoderConfig) -> dict:
    """What transformers' AutoTokenizer needs beside the SentencePiece model."""
    return {
        "tokenizer_class": "CamembertTokenizer",
        "model_max_length": config.max_tokens,
        "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "mask_token": "<mask>",
        "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED"],
    }  # fmt: skip


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
        with opened(source) as place:
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
    if is_safetensors(file) and is_ours(metadata := read_metadata(file)):
        try:
            provenance = json.loads(metadata.get("provenance", "null"))
        except (ValueError, RecursionError):
            provenance = None
        if isinstance(provenance, dict):
            return provenance, last_metrics(file.parent / "metrics.jsonl") if "options" in provenance else {}
    return {"converted from": str(options.download or source)}, {}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ModelError, DataError, OptionError) as error:
        print(f"convert_weights.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nconvert_weights.py: interrupted; nothing was written.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # a name too long, a folder that may not be looked into
        print(f"convert_weights.py: {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
