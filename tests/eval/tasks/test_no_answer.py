"""Questions without an answer, from the file to the threshold: learnt, predicted, measured by SQuAD 2.0's rules."""

import itertools
import json
import math
import random

import numpy
import pytest
import torch
import transformers

from data import demo
from data.tasks import Answer, QuestionExample
from eval.tasks.baselines import baseline_report
from eval.tasks.batching import TaskSettings
from eval.tasks.qa import AnswerSpan, QaTask, best_threshold, normalise, qa_report, word_f1
from model import EncoderConfig, MaskedLM, QuestionAnswerer, load_model
from model.checkpoints.load import load_checkpoint
from tests.eval.tasks.shared import ON_CPU, TOKENIZER, asked, ignore, save, succeeded, write
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(1, 32, 2, 32, 1005, max_positions=66, dropout=0.0)


# ---- targets and predictions -----------------------------------------------------------------------------------


def long_question(answers):
    context = " ".join(itertools.islice(demo.texts(), 3))
    example = QuestionExample("1", context, "Où ?", tuple(Answer(context[:4], start) for start in answers))
    task = QaTask(TaskSettings(TOKENIZER, 32, doc_stride=5))
    return task, example, task.encode([example], ignore)


def test_the_target_is_the_first_token_in_every_window():
    assert {feature.target for feature in long_question([])[2]} == {(0, 0)}
    assert len({feature.target for feature in long_question([0])[2]}) == 2
    assert {feature.target for feature in long_question([None])[2]} == {None}  # there is an answer, but where?


def test_the_first_token_of_the_window_where_it_is_lowest_counts():
    task, example, features = long_question([])
    outputs = list(torch.randn(len(features), 32, 2, generator=torch.Generator().manual_seed(0)))
    outputs = [output[: len(feature.ids)] for output, feature in zip(outputs, features)]
    (prediction,) = task.decode(asked(outputs, features), features, [example])
    spans = []
    for output, feature in zip(outputs, features):
        starts, ends = output[feature.window.context_start : -1].T.tolist()
        spans += [starts[i] + ends[j] for i in range(len(starts)) for j in range(i, min(i + 30, len(ends)))]
    lowest = min(sum(output[0].tolist()) for output in outputs)
    assert prediction.no_answer == pytest.approx(lowest - max(spans), abs=1e-5)


@pytest.mark.parametrize("threshold, says_none", [(None, False), (-1.0, True), (1.0, False), (0.5, False), (0.4, True)])
def test_a_prediction_above_the_threshold_says_that_there_is_none(threshold, says_none):
    task = QaTask(TaskSettings(TOKENIZER, 32, no_answer_threshold=threshold))
    assert task.says_none(AnswerSpan("Brest", 0, 5, 0.9, 0.5)) is says_none


# ---- metrics ---------------------------------------------------------------------------------------------------


def random_questions(seed):
    """-> predictions, gold answers, and how much each prefers none"""
    rng, words = random.Random(seed), ["cat", "dog", "the", "a", "Été", "x.", "3"]
    count = rng.randrange(2, 25)
    predictions = [" ".join(rng.choices(words, k=rng.randrange(3))) for _ in range(count)]
    texts = [
        [" ".join(rng.choices(words, k=rng.randrange(1, 3))) for _ in range(rng.randrange(4))] for _ in predictions
    ]
    texts[0] = []
    return predictions, texts, [rng.uniform(-3, 3) for _ in predictions]


def official(predictions, texts, no_answer, threshold) -> dict:
    """The rules of evaluate-v2.0.py, one question at a time."""
    exact, f1 = [], []
    for prediction, answers in zip(predictions, texts):
        gold = [words for answer in answers if (words := normalise(answer, "en"))] or [""]
        exact.append(max(float(normalise(prediction, "en") == words) for words in gold))
        f1.append(max(word_f1(normalise(prediction, "en"), words) for words in gold))
    figures = {}
    for name, scores in (("exact", exact), ("f1", f1)):
        given = [
            float(not answers) if value > threshold else score
            for score, answers, value in zip(scores, texts, no_answer)
        ]
        figures[name] = sum(given) / len(given)
        for group, has in (("HasAns", True), ("NoAns", False)):
            inside = [score for score, answers in zip(given, texts) if bool(answers) is has]
            if inside:
                figures |= {f"{group}_{name}": sum(inside) / len(inside), f"{group}_total": len(inside)}
        current = best = sum(not answers for answers in texts)
        where = None
        for value, score, answers, prediction in sorted(zip(no_answer, scores, texts, predictions)):
            current += score if answers else -1 if prediction else 0
            if current > best:
                best, where = current, value
        figures |= {f"best_{name}": best / len(scores), f"best_{name}_thresh": where}
    return figures


@pytest.mark.parametrize("seed", range(20))
def test_the_figures_are_those_of_the_official_script(seed):
    predictions, texts, no_answer = random_questions(seed)
    threshold = random.Random(seed).uniform(-3, 3)
    report = qa_report(predictions, [each or [""] for each in texts], "en", seed, no_answer, threshold)
    assert report == json.loads(json.dumps(report))
    expected = official(predictions, texts, no_answer, threshold)
    names = {"exact": "exact_match"}
    found = {name: report[names.get(name, name)] for name in expected}
    found = {name: value["value"] if isinstance(value, dict) else value for name, value in found.items()}
    for name in ("best_exact_thresh", "best_f1_thresh"):
        if expected[name] is None:  # none is best everywhere
            assert found[name] <= 0 and found[name] < min(no_answer)
            expected[name] = found[name]
    assert found == pytest.approx(expected)
    assert all(value["low"] <= value["value"] <= value["high"] for value in report.values() if isinstance(value, dict))


def test_questions_that_all_have_an_answer_are_measured_as_before():
    report = qa_report(["un chat", "le"], [["chat"], ["x", "le"]], "fr", 0, [1.0, -5.0])
    assert list(report) == ["exact_match", "f1", "inclusion", "count"] and report["exact_match"]["value"] == 1
    report = qa_report(["un chat", "le"], [["chat"], ["x", "le"]], "fr", 0, [1.0, -5.0], 0.0)
    assert report["exact_match"]["value"] == 0.5


@pytest.mark.parametrize(
    "no_answer, expected",
    [
        ([0.2, 0.3], (0.5, 0.0)),  # as in the official script: all are none above 0
        ([-0.2, 0.3], (0.5, -1.2)),
        ([0.0, 0.3], (0.5, -1.0)),
        ([math.inf, math.inf], (0.5, 0.0)),
    ],
)
def test_the_threshold_where_none_is_always_best(no_answer, expected):
    scores, has_answer, is_span = numpy.zeros(2), numpy.array([True, False]), numpy.array([True, True])
    assert best_threshold(scores, has_answer, is_span, numpy.array(no_answer)) == expected


@pytest.mark.parametrize(
    "answered, no_answer, threshold",
    [
        (2, [-3.0, 1.0, 2.0], 1.5),  # the first two are taken, the third is none
        (2, [-3.0, 1.0, math.inf], 2.0),  # an empty context
        (2, [-3.0, -1.0, -2.0], -2.5),
        (2, [-1.0, -1.5, -2.0], 0.0),  # all are taken
        (0, [3.0, 4.0, 0.5], 0.25),  # all are none
        (0, [-3.0, 4.0, 0.5], -3.5),
    ],
)
def test_the_threshold_of_a_model_is_no_prediction(answered, no_answer, threshold):
    """Rounding at another batch size would change that prediction."""
    answers = [(Answer("Brest", 0),) if i < answered else () for i in range(3)]
    examples = [QuestionExample("", "Brest", "Où ?", each) for each in answers]
    predictions = [AnswerSpan("Brest", 0, 5, 0.5, value) for value in no_answer]
    task = QaTask(TaskSettings(TOKENIZER, 32)).with_best_threshold(predictions, examples)
    assert task.settings.no_answer_threshold == threshold
    figures = task.metrics(predictions, examples, 0)
    assert figures["f1"]["value"] == figures["best_f1"] and figures["best_f1_thresh"] <= threshold


def test_the_baseline_says_none_if_that_is_better_on_the_training_questions():
    """It would find Brest in each of them, which is right for one in two or one in three."""
    has, none = (QuestionExample("", "Anne habite Brest.", "Où habite Anne ?", x) for x in ((Answer("Brest", 12),), ()))
    assert baseline_report([has, none], [has, none])["HasAns_exact"]["value"] == 1
    report = baseline_report([has, none, none] * 1000, [has, none, none])
    assert (report["HasAns_exact"]["value"], report["NoAns_exact"]["value"]) == (0, 1)
    assert baseline_report([none], [none])["f1"]["value"] == 1


# ---- the commands ----------------------------------------------------------------------------------------------


def examples_of(seed: int, count: int = 60) -> list[dict]:
    """« Où ? » is answered by the town, if there is one. No articles: without them, nothing is left."""
    rng, found = random.Random(seed), []
    for number in range(count):
        words = rng.choices(["film", "est", "ville", "dans", "et", "habite"], k=rng.randrange(2, 7))
        town = rng.choice(["Brest", "Nantes", "Lille"])
        if number % 2:
            words.insert(rng.randrange(len(words) + 1), town)
        context = " ".join(words)
        answers = [{"text": town, "answer_start": context.index(town)}] if number % 2 else []
        value = {"id": str(number), "context": context, "question": "Où ?", "answers": answers}
        found.append(
            {**value, "is_impossible": not answers, "plausible_answers": [{"text": context, "answer_start": 0}]}
        )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has learnt some questions to have no answer, and its files."""
    folder = tmp_path_factory.mktemp("qa")
    torch.manual_seed(0)
    save(MaskedLM(CONFIG), folder / "lm.safetensors")
    write(folder / "train", *examples_of(0))
    write(folder / "dev", *examples_of(1, 20))
    result = finetune(folder, "out", "--test", folder / "dev", "--epochs", 40)
    assert "train: 30 of 60 questions have no answer" in result.stderr
    return folder


def finetune(folder, out, *arguments):
    inputs = ("--model", folder / "lm.safetensors", "--train", folder / "train", "--dev", folder / "dev")
    settings = ("--lr", "1e-2", "--step-tokens", 256, *ON_CPU)
    return succeeded(
        run_command("-m eval", "finetune", "qa", *inputs, "--out", folder / out, *settings, *map(str, arguments))
    )


def test_none_is_learnt_and_measured(folder, tmp_path):
    (run,) = json.loads((folder / "out" / "results.json").read_text())["runs"]
    assert run["dev"] == run["test"]
    perfect = ("exact_match", "f1", "inclusion", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
    assert {name: run["dev"][name]["value"] for name in perfect} == dict.fromkeys(perfect, 1)
    assert run["dev"]["HasAns_total"] == run["dev"]["NoAns_total"] == 10 and run["dev"]["best_f1"] == 1
    model = load_model(folder / "out" / "model.safetensors")
    assert model.no_answer_threshold > run["dev"]["best_f1_thresh"]
    arguments = ("--model", folder / "out", "--test", folder / "dev", "--out", tmp_path / "r.json", *ON_CPU)
    result = succeeded(run_command("-m eval", "qa", *arguments))
    assert json.loads((tmp_path / "r.json").read_text())["figures"] == run["test"]
    assert "NoAns_f1                 1.0000" in result.stdout
    never = succeeded(run_command("-m eval", "qa", *arguments, "--no-answer-threshold", "1e9"))
    assert "NoAns_f1                 0.0000" in never.stdout and "HasAns_f1                1.0000" in never.stdout


def predict(folder, *arguments):
    result = succeeded(run_command("-m eval", "predict", "qa", "--model", folder, *ON_CPU, *map(str, arguments)))
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_predict_says_that_there_is_none(folder, tmp_path):
    lines = write(tmp_path / "lines", *(f"Où ?\t{value['context']}".encode() for value in examples_of(1, 20)))
    found = predict(folder / "out", lines)
    threshold = load_model(folder / "out" / "model.safetensors").no_answer_threshold
    for value, answer in zip(examples_of(1, 20), found, strict=True):
        assert list(answer) == ["line", "answer", "start", "end", "score", "no_answer_score"]
        assert (answer["answer"] is None) == (answer["no_answer_score"] > threshold) == value["is_impossible"]
        if value["is_impossible"]:
            assert answer["start"] is answer["end"] is None
            assert answer["score"] == pytest.approx(1 / (1 + math.exp(-answer["no_answer_score"])), abs=2e-6)
        else:
            assert value["answers"] == [{"text": answer["answer"], "answer_start": answer["start"]}]
    assert all(answer["answer"] for answer in predict(folder / "out", lines, "--no-answer-threshold", "1e9"))
    none = predict(folder / "out", lines, "--no-answer-threshold", "-99")
    assert {answer["answer"] for answer in none} == {None} and min(answer["score"] for answer in none) < 0.5
    empty = predict(folder / "out", write(tmp_path / "empty", {"question": "Où ?", "context": ""}))
    assert empty == [{"line": 1, "answer": None, "start": None, "end": None, "score": 1.0, "no_answer_score": None}]


def test_the_threshold_survives_an_export(folder, tmp_path):
    succeeded(run_command("convert_weights.py", folder / "out", tmp_path / "hf", "--to", "hf"))
    threshold = load_model(folder / "out" / "model.safetensors").no_answer_threshold
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["no_answer_threshold"] == threshold
    assert f"{threshold:.4f} (transformers' `null_score_diff_threshold`)" in (tmp_path / "hf" / "README.md").read_text()
    assert load_checkpoint(tmp_path / "hf", ignore).no_answer_threshold == threshold
    assert type(transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "hf")).__name__.startswith("Cam")
    lines = write(tmp_path / "lines", *(f"Où ?\t{value['context']}".encode() for value in examples_of(1, 20)))
    assert predict(tmp_path / "hf", lines) == predict(folder / "out", lines)


def test_a_model_without_a_threshold_always_answers(tmp_path):
    torch.manual_seed(0)
    path = save(QuestionAnswerer(CONFIG), tmp_path / "model.safetensors")
    lines = write(tmp_path / "lines", *(f"Où ?\t{value['context']}".encode() for value in examples_of(1, 20)))
    found = predict(path, lines)
    assert all(list(answer) == ["line", "answer", "start", "end", "score"] and answer["answer"] for answer in found)
    assert all(answer["answer"] is None for answer in predict(path, lines, "--no-answer-threshold", "-99"))


def test_the_threshold_is_given_or_cannot_be_chosen(folder, tmp_path):
    finetune(folder, tmp_path / "given", "--steps", 1, "--no-answer-threshold", "0.5")
    assert load_model(tmp_path / "given" / "model.safetensors").no_answer_threshold == 0.5
    has = write(tmp_path / "has", *(value for value in examples_of(1, 20) if value["answers"]))
    result = finetune(folder, tmp_path / "dev", "--steps", 1, "--dev", has)
    assert "every question in --dev has an answer" in result.stderr
    assert load_model(tmp_path / "dev" / "model.safetensors").no_answer_threshold == 0
    finetune(folder, tmp_path / "squad1", "--steps", 1, "--dev", has, "--train", has)
    assert load_model(tmp_path / "squad1" / "model.safetensors").no_answer_threshold is None
