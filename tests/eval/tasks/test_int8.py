"""--precision int8 of the commands that predict: the same answers as fp32, and how many are printed."""

import json

import pytest
import torch

from data.tasks import TextExample
from eval.__main__ import main
from eval.tasks.batching import TaskSettings
from eval.tasks.checks import share_equal
from eval.tasks.qa import AnswerSpan, QaTask
from eval.tasks.sequences import LabelPrediction
from eval.tasks.table2 import Options
from eval.tasks.table2_speed import in_int8
from model import EncoderConfig, MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier, load_model, save_model
from model.quantised import QuantisedEmbedding
from tests.eval.tasks.shared import TOKENIZER, save

CONFIG = EncoderConfig(2, 32, 2, 64, 1005, max_positions=130)
NLI = ("entailment", "neutral", "contradiction")
MODELS = {
    "sentiment": lambda: SequenceClassifier(CONFIG, 2, ("0", "1")),
    "nli": lambda: SequenceClassifier(CONFIG, 3, NLI),
    "ner": lambda: TokenClassifier(CONFIG, 3, ("O", "B-LOC", "I-LOC")),
    "qa": lambda: QuestionAnswerer(CONFIG),
    "fill-mask": lambda: MaskedLM(CONFIG),
}
QA = {
    "id": "1",
    "context": "Marie habite à Lille.",
    "question": "Où ?",
    "answers": {"text": ["Lille"], "answer_start": [15]},
}
TEST = {
    "sentiment": [{"text": "Un film très beau.", "label": "1"}, {"text": "Un film long.", "label": "0"}],
    "nli": [{"premise": "Il pleut.", "hypothesis": "Il fait beau.", "label": "neutral"}],
    "ner": [{"tokens": ["Marie", "habite", "Lille"], "ner_tags": ["O", "O", "B-LOC"]}],
    "qa": [QA],
}


@pytest.fixture(params=[False, True], ids=["float32 file", "int8 file"])
def make(request, tmp_path):
    def make(task):
        torch.manual_seed(0)
        path = tmp_path / "model.safetensors"
        save(MODELS[task](), path, noise=0.2)
        if request.param:
            save_model(load_model(path), path, None, TOKENIZER, int8=True)
        return str(path), ["--precision", "auto" if request.param else "int8"]

    return make


@pytest.mark.parametrize("task", TEST)
def test_eval_prints_both(make, task, tmp_path, capsys):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEST[task]))
    path, precision = make(task)
    out = str(tmp_path / "out.json")
    main([task, "--model", path, "--test", str(tmp_path / "test.jsonl"), "--out", out, *precision])
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["equal_to_fp32"] == 1.0 and "equal_to_fp32            1.0000" in capsys.readouterr().out
    headline = next(name for name in figures if name.endswith("_in_fp32"))
    assert figures[headline]["value"] == figures[headline.removesuffix("_in_fp32")]["value"]


def test_predict_zero_shot_and_fill_mask(make, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("Le film est beau.\nElle habite à Lille.\n")
    texts = str(tmp_path / "texts.txt")
    for task, command in (
        ("sentiment", ["predict", "sentiment", texts]),
        ("nli", ["zero-shot", texts, "--labels", "sport", "cinéma"]),
    ):
        path, precision = make(task)
        found = []
        for chosen in (precision, ["--precision", "fp32"]):
            main([*command, "--model", path, *chosen])
            found.append([json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()])
        assert len(found[0]) == 2
        for one, other in zip(*found):
            assert one == pytest.approx(other, abs=0.02)
    path, _ = make("fill-mask")
    for precision in ("int8", "bf16"):
        main(["fill-mask", "Elle habite à <mask>.", "--model", path, "--top", "3", "--precision", precision])
        assert len(capsys.readouterr().out.split("\n")) == 5


def test_the_student_of_table2_in_int8(make):
    """The model that is returned, and timed, is the one in int8; the figures are of both."""
    path, _ = make("sentiment")
    examples = [TextExample(row["text"], row["label"]) for row in TEST["sentiment"]]
    model, found = in_int8(path, "sentiment", examples, Options(device="cpu"), 0)
    assert isinstance(model.encoder.embeddings.word, QuantisedEmbedding)
    assert found["figures"].keys() == {"fp32", "int8"} and found["equal_to_fp32"] == 1.0


def test_share_equal():
    a, b = (LabelPrediction(name, torch.zeros(2)) for name in "ab")
    assert share_equal(None, [a, a, b, b], [a, b, b, b]) == 0.75

    task = QaTask(TaskSettings(TOKENIZER, 64))
    spans = [AnswerSpan(answer, 0, 1, 0.5, 0.0) for answer in ("x", "y")]
    assert share_equal(task, spans, [spans[0]] * 2) == 0.5
