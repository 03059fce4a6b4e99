"""Wrong input to train.py: one message, exit status 2, no traceback, nothing under a final name."""

from unittest.mock import Mock

import pytest
import torch

from data import Tokenizer
from model import save_model
from tests.helpers import REAL_TOKENIZER, needs
from tests.train_runs import SIZES, TOKENIZER, make_teacher, run, write_inputs


@pytest.fixture
def place(tmp_path):
    return write_inputs(tmp_path)


def replace_corpus(content, encoding="utf-8"):
    return lambda folder: (folder / "corpus.txt").write_text(content, encoding)


OUT_OF_BOUNDS = {
    "steps": (-1, "at least 1 and at most 1,000,000,000, not -1"),
    "batch_size": (0, "at least 1"),
    "accumulate": (0, "at least 1"),
}
OUT_OF_BOUNDS |= {"block_size": (1, "at least 3"), "lr": ("nan", "at least"), "temperature": (0, "at least 0.01")}
OUT_OF_BOUNDS |= {"warmup": (1.5, "at least 0 and at most 1"), "dropout": (1, "at least 0 and at most 0.9")}
OUT_OF_BOUNDS |= {
    "weights": ([-1, 1, 1], "at least 0"),
    "chunk_mb": (0, "at least 1"),
    "seed": (2**64, "at least 0 and at most 4,611,686,018,427,387,904, not"),
}
OUT_OF_BOUNDS |= {"epochs": (0, "at least")}
OUT_OF_BOUNDS |= {"num_layers": (10**9, ""), "hidden_size": (10**9, ""), "num_heads": (0, "at least 1")}
WRONG_OPTIONS = {
    "no such teacher": (dict(teacher="nothing.safetensors"), "There is no file nothing.safetensors. Check the path."),
    "a text as teacher": (dict(teacher="LICENSE"), "neither a .safetensors file nor"),
    "no tokenizer": (dict(tokenizer=None), "There is no sentencepiece.bpe.model inside or beside"),
    "neither teacher nor tokenizer": (dict(teacher="nothing", tokenizer=None), "There is no model nothing."),
    "no such tokenizer": (dict(tokenizer="nothing.model"), "no tokenizer nothing.model"),
    "no tokenizer and no teacher": (dict(teacher="none", tokenizer=None), "There is no tokenizer given"),
    "no such corpus": (dict(corpus="nothing.txt"), "There is no corpus nothing.txt"),
    "an output below a file": (dict(out="LICENSE/out"), "cannot be written"),
    "too many steps": (dict(steps="9" * 400), "--steps must be"),
    "steps that are no integer": (dict(steps="many"), "invalid int value"),
    "a block too long": (dict(block_size=513), "--block-size 513 exceeds the model's 512 tokens"),
    "no learning rate": (dict(lr=0), "--lr must be at least 1e-12"),
    "zero weights": (dict(weights=[0, 0, 0]), "--weights needs at least one weight of 0.001 or more"),
    "two weights": (dict(weights=[0.5, 0.5]), "expected 3 arguments"),
    "a layer that the teacher lacks": (dict(layers="0,4"), "there is no layer 4"),
    "layers of a larger teacher": (dict(layers="distilbert"), "needs a teacher of 12 layers"),
    "a real run on the demo's text": (
        dict(corpus=None, steps=1001),
        "train on the demo's invented text. Name a corpus",
    ),
    "a real student on the demo's text": (
        dict(teacher="none", student="x", tokenizer=None, corpus=None, steps=1001),
        "train on the demo's invented text. Name a corpus",
    ),
    "steps and epochs": (dict(epochs=1), "--epochs is another way to say --steps: give one of them"),
    "epochs of the demo's text": (
        dict(corpus=None, steps=None, epochs=30, batch_size=1),
        "would train on the demo's invented text. Name a corpus",
    ),
    "layers and a student": (dict(layers="0", student="x"), "--layers cannot be combined with --student"),
    "769 / 12": (SIZES | dict(hidden_size=769, num_heads=12), "769 must be divisible by num_heads 12"),
    "a size with a teacher": (dict(hidden_size=64), "--hidden-size needs --teacher none"),
    "a device of another PyTorch": (dict(device="hpu"), "--device hpu is not available"),
    "an unknown device": (dict(device="abacus"), "--device must be auto, cpu, cuda, cuda:1, …, not 'abacus'"),
    "an unknown precision": (dict(precision="fp8"), "--precision must be auto, fp32, bf16 or fp16"),
    "an unknown direction": (dict(direction="reverse"), "--direction must be"),
    "an unknown option": (dict(colour="red"), "There is no option --colour"),
}
for name, (value, bounds) in OUT_OF_BOUNDS.items():
    WRONG_OPTIONS[f"{name} {value}"] = ({name: value}, f"--{name.replace('_', '-')} must be {bounds}")
for name in ("out", "teacher", "tokenizer", "corpus", "device"):
    WRONG_OPTIONS[f"empty {name}"] = ({name: ""}, f"--{name} is empty")
WRONG_FILES = {
    "an empty corpus": (replace_corpus("\n \n"), "no usable text"),
    "a corpus that is not UTF-8": (replace_corpus("été\n" * 50, "latin-1"), "is not UTF-8. Convert it"),
    "a corpus of special tokens": (replace_corpus("".join("<mask> " * n + "\n" for n in range(120))), "is masked"),
    "a corpus of zero-width spaces": (replace_corpus("\u200b\n" * 500), "no usable text"),
    "too small a corpus": (replace_corpus("Un film.\n"), "too few tokens, 4, for two blocks of 32"),
    "a corpus folder without text": (lambda folder: (folder / "corpus").mkdir(), "has no file in it"),
    "an output that is a file": (lambda folder: (folder / "out").write_text("x"), "cannot be written"),
}


def assert_refused(place, message, **changed):
    assert message in run(place, status=2, **changed).stderr
    assert {path.name for path in (place / "out").glob("*")} <= {"run.json"}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(place, case):
    changed, message = WRONG_OPTIONS[case]
    assert_refused(place, message, **changed)


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files(place, case):
    spoil, message = WRONG_FILES[case]
    spoil(place)
    assert_refused(place, message, corpus=place / ("corpus" if "folder" in case else "corpus.txt"))


def test_a_student_with_another_tokenizer_of_the_same_size(place):
    other, student = TOKENIZER.content.replace("▁film".encode(), "▁filn".encode()), place / "student.safetensors"
    save_model(make_teacher(), student, tokenizer=Tokenizer("other", other))
    assert_refused(place, f"is not the one inside {student}", student=student)


@needs(REAL_TOKENIZER)
def test_a_tokenizer_of_another_size(place):
    assert_refused(place, "does not match the model: it has 32005 tokens", tokenizer=REAL_TOKENIZER)


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has an eighth GPU")
def test_a_gpu_that_does_not_exist(place):
    assert_refused(place, "--device cuda:7 is not available", device="cuda:7")


def test_a_compiler_that_does_not_work(place, monkeypatch):
    monkeypatch.setattr("torch.compile", Mock(side_effect=RuntimeError("no compiler found")))
    assert_refused(place, "--compile on: torch.compile does not work for cpu (no compiler found)", compile="on")


def test_a_full_disk(place, monkeypatch):
    full = OSError(28, "No space left on device", "metrics.jsonl")
    monkeypatch.setattr("model.training.run_folder.keep_best", Mock(side_effect=full))
    assert "train.py: metrics.jsonl: No space left on device" in run(place, status=2).stderr
    assert not (place / "out" / "student.safetensors").exists()


def test_an_interruption_has_status_130(place, monkeypatch):
    monkeypatch.setattr("model.training.log.progress_line", Mock(side_effect=KeyboardInterrupt))
    assert "interrupted" in run(place, status=130).stderr


@pytest.mark.parametrize("steps", [30, 1])
def test_a_loss_that_is_not_finite_has_status_3(place, steps, monkeypatch):
    monkeypatch.setattr("model.training.options.check_bounds", lambda options: None)
    assert "smaller --lr" in run(place, status=3, lr=1e30, clip=1e30, steps=steps).stderr
    assert not (place / "out" / "student.safetensors").exists()
