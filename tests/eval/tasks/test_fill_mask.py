"""python -m eval fill-mask: against transformers' pipeline on the same weights, and error messages."""

import pytest
import torch
import transformers

from model import EncoderConfig, MaskedLM, SequenceClassifier, save_model
from model.checkpoints.export import export_huggingface
from tests.eval.tasks.shared import TOKENIZER, check_error, save, succeeded
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(2, 32, 2, 32, 1005, max_positions=66)
TEXTS = ["Le film est <mask>.", "Elle habite à <mask>, et elle aime <mask>.", "<mask>", "<mask> <mask> 🎬 <mask>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model in this project's format and in transformers'."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = MaskedLM(CONFIG)
    save(model, folder / "model.safetensors", noise=0.2)
    export_huggingface(model, folder / "theirs", TOKENIZER)
    return folder


def candidates(stdout: str) -> list[list[tuple[float, str, str]]]:
    """For each mask: probability, piece, the text with it."""
    blocks = stdout.removesuffix("\n\n").split("\n\n")
    lines = [[line.split(maxsplit=2) for line in block.split("\n")] for block in blocks]
    return [[(float(probability), piece, *text) for probability, piece, *text in block] for block in lines]


def test_tokens_and_probabilities_equal_the_pipelines(folder):
    pipeline = transformers.pipeline("fill-mask", model=str(folder / "theirs"), device="cpu")
    for model in (folder / "model.safetensors", folder / "theirs"):
        result = succeeded(run_command("-m eval", "fill-mask", *TEXTS, "--model", model, "--top", 4))
        found = candidates(result.stdout)
        assert len(found) == sum(text.count("<mask>") for text in TEXTS)
        for text in TEXTS:
            theirs = pipeline(text, top_k=4)
            for expected in theirs if text.count("<mask>") > 1 else [theirs]:
                for actual, one in zip(found.pop(0), expected, strict=True):
                    assert actual[0] == pytest.approx(one["score"], abs=2e-5)
                    assert actual[1] == TOKENIZER.pieces([one["token"]])[0]


def test_the_text_with_each_candidate(folder):
    result = run_command("-m eval", "fill-mask", TEXTS[0], "--model", folder / "model.safetensors", "--top", 2000)
    (found,) = candidates(result.stdout)
    assert len(found) == 1005
    assert sum(probability for probability, *_ in found) == pytest.approx(1, abs=1e-2)
    texts = [text[0] for _, piece, *text in found if piece == "▁Brest"]
    assert texts == ["Le film est Brest ."]  # what follows <mask> is a text of its own


def test_the_demo():
    result = run_command("-m eval", "fill-mask", "Elle habite à <mask>.")
    assert result.returncode == 0 and "Elle habite à " in result.stdout
    assert candidates(result.stdout)[0][0][0] > 0.01


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["Le film est long."], "There is no <mask> in 'Le film est long.'"),
        ([TEXTS[0], "Oui."], "There is no <mask> in 'Oui.'"),
        ([""], "is empty"),
        ([TEXTS[0], "--top", 0], "--top must be at least 1"),
        ([TEXTS[0], "--model", "/none"], "There is no file /none"),
        ([TEXTS[0], "--model", "CLASSIFIER"], "is a SequenceClassifier, not a MaskedLM"),
        ([TEXTS[0], "--model", "MODEL", "--tokenizer", "/none"], "There is no tokenizer /none"),
        ([TEXTS[0] + " Oui." * 64, "--model", "MODEL"], "longer than the model's maximum of 64"),
        (["Le film est \udcff <mask>.", "--model", "MODEL"], "is not UTF-8"),
    ],
)
def test_error_messages(folder, tmp_path, arguments, sentence):
    save_model(SequenceClassifier(CONFIG, 2), tmp_path / "classifier.safetensors")
    there = {"MODEL": folder / "model.safetensors", "CLASSIFIER": tmp_path / "classifier.safetensors"}
    result = run_command("-m eval", "fill-mask", *(there.get(argument, argument) for argument in arguments))
    check_error(result, sentence)


def test_a_missing_text_and_a_missing_tokenizer(tmp_path):
    assert run_command("-m eval", "fill-mask").returncode == 2
    save_model(MaskedLM(CONFIG), tmp_path / "model.safetensors")
    result = run_command("-m eval", "fill-mask", "<mask>", "--model", tmp_path / "model.safetensors")
    assert result.returncode == 2 and "There is no sentencepiece.bpe.model inside or beside" in result.stderr
