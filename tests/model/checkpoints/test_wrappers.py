"""State dicts as wrappers leave them, taken from the wrappers themselves where they are installed."""

import shutil

import pytest
import torch
from safetensors.torch import save_model as save_with_safetensors
from torch import nn
from torch.optim.swa_utils import AveragedModel

from data import Tokenizer, demo
from data.tokenizer import FILE_NAME
from model import Encoder, MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier
from tests.model.checkpoints import files
from tests.model.checkpoints.files import assert_refused, load


class Module(nn.Module):
    """As a LightningModule: models under names of its own, and what training needs beside them."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def parallel(model):
    """The keys of DistributedDataParallel, which needs a process group."""
    return Module(module=model)


def accuracy():
    metric = nn.Module()
    metric.register_buffer("correct", torch.zeros(3, dtype=torch.int64))
    return metric


def renamed(*pairs):
    """Names that wrappers for many processes leave, which one process cannot set up."""

    def wrap(model):
        state = model.state_dict()
        for old, new in pairs:
            state = {key.replace(old, new, 1): tensor for key, tensor in state.items()}
        return state

    return wrap


def prefixed(prefix):
    return renamed(("", prefix))


def of(wrap):
    return lambda model: wrap(model).state_dict()


def compiled_encoder(model):
    model.roberta = torch.compile(model.roberta)
    return model


FSDP, CHECKPOINTED = "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."
WRAPPERS = {  # how the state dict is made, the prefix that is reported, what else is
    "data parallel": (of(parallel), "module.", ()),
    "twice": (of(lambda x: parallel(parallel(x))), "module.module.", ()),
    "compiled": (of(torch.compile), "_orig_mod.", ()),
    "compiled, then data parallel": (of(lambda x: parallel(torch.compile(x))), "module._orig_mod.", ()),
    "compiled in a module": (of(lambda x: Module(model=torch.compile(x))), "model._orig_mod.", ()),
    "a compiled encoder": (of(compiled_encoder), None, ("_orig_mod inside its keys is left out",)),
    "averaged": (of(AveragedModel), "module.", ("n_averaged is left out; it is a counter",)),
    "FSDP": (renamed(("", FSDP), ("layer.0.", f"layer.0.{FSDP}{CHECKPOINTED}")), FSDP, (FSDP[:-1], CHECKPOINTED[:-1])),
    "a student": (of(lambda x: Module(student=x)), "student.", ()),
    "nested": (of(lambda x: Module(net=Module(model=x))), "net.model.", ()),
    "beside a loss and a metric": (
        of(lambda x: Module(model=x, loss=nn.Linear(2, 2), accuracy=accuracy())),
        "model.",
        ("because the CamemBERT is under model.: loss.weight, loss.bias, accuracy.correct.",),
    ),
    "beside much else": (
        of(lambda x: Module(model=x, other=nn.LSTM(2, 2))),
        "model.",
        ("other.bias_ih_l0 and 1 more.",),
    ),
    "called camembert": (renamed(("roberta.", "camembert.")), None, ()),
    "called bert": (renamed(("roberta.", "bert.")), None, ()),
    "camembert in a module": (renamed(("roberta.", "camembert."), ("", "model.")), "model.", ()),
}


@pytest.mark.parametrize(("wrap", "prefix", "sentences"), WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrappers_part_of_the_keys_is_stripped_and_said(folder, theirs, wrap, prefix, sentences):
    state, path = wrap(theirs), folder / "pytorch_model.bin"
    (folder / "model.safetensors").unlink()
    torch.save(state, path)
    model, reports = load(folder)
    theirs.roberta = getattr(theirs.roberta, "_orig_mod", theirs.roberta)
    assert type(model) is MaskedLM
    files.assert_same_outputs(model, theirs)
    assert [f"{path}: the prefix {prefix} is stripped from its keys."] * bool(prefix) == [
        line for line in reports if "prefix" in line
    ]
    others = [line for line in reports if "prefix" not in line and "it is a copy of" not in line]
    assert bool(others) == bool(sentences) and all(any(each in line for line in others) for each in sentences)


@pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier, QuestionAnswerer, Encoder])
def test_every_class_in_a_module(kind, tmp_path):
    theirs = files.headed_model(kind)
    path = files.as_bin(theirs, tmp_path)
    torch.save(Module(model=torch.compile(theirs)).state_dict(), path)
    model, _ = load(path)
    assert type(model) is kind
    files.assert_same_outputs(model, theirs)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_what_safetensors_leaves_of_a_tied_model(folder, theirs, prefix):
    """One name of two, the first in the alphabet: of the embeddings, that of the decoder."""
    wrapped = {"": theirs, "_orig_mod.": torch.compile(theirs), "module.": parallel(theirs)}[prefix]
    save_with_safetensors(wrapped, folder / "model.safetensors")
    keys = files.load_file(folder / "model.safetensors").keys()
    assert (
        f"{prefix}lm_head.decoder.weight" in keys and f"{prefix}roberta.embeddings.word_embeddings.weight" not in keys
    )
    model, reports = load(folder)
    files.assert_same_outputs(model, theirs)
    assert len(reports) == bool(prefix)


def test_the_weights_of_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    theirs = files.headed_model(Encoder)
    folder = files.as_folder(theirs, tmp_path / "theirs")
    shutil.copyfile(Tokenizer(demo.FOLDER).path, folder / FILE_NAME)
    state = library.SentenceTransformer(str(folder), device="cpu").state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    model, reports = load(folder)
    files.assert_same_outputs(model, theirs)
    assert "the prefix 0." in reports[0]


SEVERAL = {  # how the file is made, how the error names the models
    "in one module": (
        of(lambda x: Module(student=x, teacher=files.headed_model(MaskedLM))),
        "'student.' and 'teacher.'",
    ),
    "averaged beside it": (of(lambda x: Module(model=x, ema=AveragedModel(x))), "'ema.' and 'model.'"),
    "one of them at the top": (lambda x: {**x.state_dict(), **prefixed("teacher.")(x)}, "'' and 'teacher.'"),
    "in two dictionaries": (lambda x: {"student": x.state_dict(), "teacher": x.state_dict()}, "student and teacher"),
    "in one of two": (lambda x: {"nets": {"a": x.state_dict(), "b": x.state_dict()}, "epoch": 1}, "nets.a and nets.b"),
    "wrapped and not": (lambda x: {**x.state_dict(), **prefixed("module.")(x)}, "the same tensor twice"),
}


@pytest.mark.parametrize(("wrap", "sentence"), SEVERAL.values(), ids=SEVERAL)
def test_several_models_in_one_file_are_an_error(folder, theirs, wrap, sentence):
    (folder / "model.safetensors").unlink()
    torch.save(wrap(theirs), folder / "pytorch_model.bin")
    assert_refused(folder, sentence)


NESTED = {
    "DeepSpeed": (lambda state: {"module": state, "optimizer": None, "global_steps": 7}, "module"),
    "Lightning": (lambda state: {"state_dict": state, "callbacks": {"best": {"score": torch.ones(1)}}}, "state_dict"),
    "two levels": (
        lambda state: {"checkpoint": {"weights": state, "metric": {"f1": torch.ones(1)}}},
        "checkpoint.weights",
    ),
    "an optimiser by name": (
        lambda state: {"net": state, "optimizer": {"state": {key: {"exp_avg": x} for key, x in state.items()}}},
        "net",
    ),
}


@pytest.mark.parametrize(("nest", "place"), NESTED.values(), ids=NESTED)
def test_the_weights_in_a_training_checkpoint(folder, theirs, nest, place):
    (folder / "model.safetensors").unlink()
    torch.save(nest(parallel(theirs).state_dict()), folder / "pytorch_model.bin")
    model, reports = load(folder)
    files.assert_same_outputs(model, theirs)
    assert f"the weights under {place} are used" in reports[0] and "the prefix module." in reports[1]


def test_a_head_of_ones_own_is_left_out_and_said(folder, theirs):
    """What it computes is not known: the encoder alone is read."""
    (folder / "model.safetensors").unlink()
    module = Module(backbone=theirs.roberta, classifier=nn.Linear(48, 3))
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    model, reports = load(folder)
    assert type(model) is Encoder and "classifier.weight, classifier.bias" in reports[-1]
    files.assert_same_outputs(model, theirs.roberta)
    assert_refused(folder, "is a bare encoder", kind=MaskedLM)
