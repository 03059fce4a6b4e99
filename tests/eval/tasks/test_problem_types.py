"""The commands with models that are no softmax: as transformers' pipeline, learnt, exported, refused."""

import json
import random

import pytest
import torch
import transformers

from data import demo
from data.tokenizer import FILE_NAME
from model import EncoderConfig, MaskedLM, SequenceClassifier, load_model
from model.checkpoints.load import load_checkpoint
from tests.eval.tasks.shared import ON_CPU, check_error, ignore, save, succeeded, write
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(1, 32, 2, 32, 1005, max_positions=66, dropout=0.0)
MULTI, SINGLE, VALUE = "multi_label_classification", "single_label_classification", "regression"
TEXTS = ["Le film est long.", "Elle habite à Brest, et elle aime la mer.", "", "Oui."]
LABELS = ("joie", "peur", "colère")
FUNCTIONS = {SINGLE: "softmax", MULTI: "sigmoid", VALUE: "none"}


def model_of(problem_type, num_labels, noise=0.3):
    torch.manual_seed(0)
    model = SequenceClassifier(CONFIG, num_labels, LABELS[:num_labels], problem_type)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def command(*arguments):
    return run_command("-m eval", *map(str, arguments), *ON_CPU)


def answers(result):
    return [json.loads(line) for line in succeeded(result).stdout.splitlines()]


# ---- predict ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("problem_type", [None, SINGLE, MULTI, VALUE])
def test_predict_equals_transformers_pipeline(tmp_path, monkeypatch, problem_type, num_labels):
    """From transformers' folder, our file, and our export; its pipeline also by default, once we have exported it.

    A single output without a problem_type is the exception: transformers trains it as a regression, as it is read here,
    but shows its sigmoid. (A softmax of one output, transformers 5 refuses.)
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs, ours, export = tmp_path / "theirs", tmp_path / "ours.safetensors", tmp_path / "export"
    save(model_of(None, num_labels), tmp_path / "start.safetensors")
    succeeded(run_command("convert_weights.py", tmp_path / "start.safetensors", theirs, "--to", "hf"))
    config = json.loads((theirs / "config.json").read_text()) | {"problem_type": problem_type}
    (theirs / "config.json").write_text(json.dumps(config))
    succeeded(run_command("convert_weights.py", theirs, ours))
    succeeded(run_command("convert_weights.py", ours, export, "--to", "hf", "--tokenizer", demo.FOLDER / FILE_NAME))
    kind = problem_type if num_labels > 1 or problem_type == MULTI else VALUE
    assert (
        load_model(ours).problem_type
        == json.loads((export / "config.json").read_text())["problem_type"]
        == (kind or SINGLE)
    )
    pipeline = transformers.pipeline("text-classification", model=str(export), device="cpu")
    by_default, explicit = (
        [{one["label"]: one["score"] for one in found} for found in pipeline(TEXTS, top_k=None, **options)]
        for options in ({}, {"function_to_apply": FUNCTIONS[kind or SINGLE]})
    )
    assert by_default == explicit
    lines = write(tmp_path / "lines", *({"text": text} for text in TEXTS))
    for model in (theirs, ours, export):
        found = answers(command("predict", "sentiment", "--model", model, lines, "--tokenizer", demo.FOLDER))
        for value, expected in zip(found, explicit, strict=True):
            if kind == VALUE:
                scores = {LABELS[0]: value["value"]} if num_labels == 1 else value["values"]
            else:
                scores = value["scores"]
            assert scores == pytest.approx(expected, abs=2e-6)
            if kind == MULTI:
                assert value["labels"] == [label for label in scores if expected[label] > 0.5]
    assert len({json.dumps({**value, "line": 0}) for value in found}) == len(TEXTS)


# ---- finetune and evaluate -------------------------------------------------------------------------------------

WORDS = {"beau": "joie", "triste": "peur"}


def examples_of(problem_type: str, seed: int, count: int = 60, task: str = "sentiment") -> list[dict]:
    """The labels are those of the words, the value is 1 for beau, -1 for triste, 0 for both or none."""
    rng, found = random.Random(seed), []
    for number in range(count):
        there = [word for i, word in enumerate(WORDS) if number >> i & 1]
        words = [*rng.choices(["le", "film", "est", "une", "ville"], k=4), *there]
        rng.shuffle(words)
        text = " ".join(words)
        texts = {"text": text} if task == "sentiment" else {"premise": text, "hypothesis": "Oui."}
        value = ("beau" in there) - float("triste" in there)
        found.append({**texts, "label": [WORDS[word] for word in there] if problem_type == MULTI else value})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    torch.manual_seed(0)
    save(MaskedLM(CONFIG), folder / "lm.safetensors")
    for kind in (MULTI, VALUE):
        write(folder / f"{kind}.train", *examples_of(kind, 0))
        write(folder / f"{kind}.dev", *examples_of(kind, 1, 20))
    return folder


def finetune(folder, kind, out, *arguments, task="sentiment"):
    files = ("--train", folder / f"{kind}.train", "--dev", folder / f"{kind}.dev", "--test", folder / f"{kind}.dev")
    settings = ("--lr", "1e-2", "--step-tokens", 256, "--problem-type", kind)
    return command("finetune", task, "--model", folder / "lm.safetensors", *files, "--out", out, *settings, *arguments)


@pytest.fixture(scope="module")
def tuned(folder):
    for kind in (MULTI, VALUE):
        succeeded(finetune(folder, kind, folder / kind, "--epochs", 20))
    return folder


@pytest.mark.parametrize("kind, headline", [(MULTI, "micro_f1"), (VALUE, "pearson")])
def test_it_is_learnt_and_measured(tuned, tmp_path, kind, headline):
    (run,) = json.loads((tuned / kind / "results.json").read_text())["runs"]
    assert run["dev"] == run["test"] and run["dev"][headline]["value"] > 0.98
    model = load_model(tuned / kind / "model.safetensors")
    assert model.problem_type == kind and model.labels == (("joie", "peur") if kind == MULTI else ("LABEL_0",))
    arguments = (kind, "--model", tuned / kind, "--test", tuned / f"{kind}.dev", "--out", tmp_path / "r.json")
    result = succeeded(command("sentiment", *arguments[1:]))
    assert json.loads((tmp_path / "r.json").read_text())["figures"] == run["test"] and headline in result.stdout


@pytest.mark.parametrize("kind", [MULTI, VALUE])
def test_a_teacher_of_the_same_kind_is_learnt_from_wrong_labels(tuned, tmp_path, kind):
    """With --soft-weight 1 the labels have no weight."""
    wrong = write(
        tmp_path / "wrong", *({**v, "label": ["joie"] if kind == MULTI else 5.0} for v in examples_of(kind, 0))
    )
    settings = ("--teacher", tuned / kind, "--soft-weight", 1, "--temperature", 1, "--epochs", 1)
    copies = [wrong] * 40  # in one epoch, so that the last step's model is kept
    succeeded(finetune(tuned, kind, tmp_path / "out", *settings, "--train", *copies))
    lines = write(tmp_path / "lines", *({"text": value["text"]} for value in examples_of(kind, 1, 20)))
    ours, theirs = (
        [list(found["scores"].values()) if kind == MULTI else [found["value"]] for found in answers(predicted)]
        for predicted in (
            command("predict", "sentiment", "--model", m, lines) for m in (tmp_path / "out", tuned / kind)
        )
    )
    difference = (torch.tensor(ours) - torch.tensor(theirs)).abs().mean()
    assert difference < 0.25 * torch.tensor(theirs).std()


def test_pairs_too(folder, tmp_path):
    """As STS-B: the similarity of two sentences."""
    for part in ("train", "dev"):
        write(tmp_path / f"{VALUE}.{part}", *examples_of(VALUE, 0, task="nli"))
    save(load_checkpoint(folder / "lm.safetensors", ignore), tmp_path / "lm.safetensors")
    succeeded(finetune(tmp_path, VALUE, tmp_path / "out", "--steps", 2, task="nli"))
    found = answers(command("predict", "nli", "--model", tmp_path / "out", write(tmp_path / "lines", b"un\tdeux")))
    assert list(found[0]) == ["line", "value"]


# ---- what is refused -------------------------------------------------------------------------------------------


def test_label_maps(tuned, tmp_path):
    """Labels of a multi-label model can be renamed, but their probabilities do not add up; a value has no label."""
    renamed = [{**value, "label": [label.upper() for label in value["label"]]} for value in examples_of(MULTI, 1, 20)]
    test = write(tmp_path / "test", *renamed)
    arguments = ("sentiment", "--model", tuned / MULTI, "--test", test, "--out", tmp_path / "r.json")
    check_error(command(*arguments), "label 'JOIE'", "--label-map")
    result = succeeded(command(*arguments, "--label-map", "JOIE=joie", "PEUR=peur"))
    assert "micro_f1                 1.0000" in result.stdout
    check_error(command(*arguments, "--label-map", "JOIE=joie,peur"), "add up in a softmax only")
    arguments = ("sentiment", "--model", tuned / VALUE, "--test", tuned / f"{VALUE}.dev", "--out", tmp_path / "r.json")
    check_error(command(*arguments, "--label-map", "a=LABEL_0"), "its output is a value")


@pytest.mark.parametrize(
    "model, data, sentence",
    [
        (SINGLE, MULTI, "f line 1: label must be a string, not list"),
        (SINGLE, VALUE, "f line 1: label must be a string, not float"),
        (VALUE, MULTI, "f line 1: label must be a finite number, not []"),
        (MULTI, VALUE, "f line 1: label must be a string, not float"),
    ],
)
def test_labels_of_another_kind(tuned, tmp_path, model, data, sentence):
    path = save(model_of(SINGLE, 2), tmp_path / "model.safetensors") if model == SINGLE else tuned / model
    rows = examples_of(data, 0, 4)
    if data == VALUE:  # whole numbers could be labels that pandas made floats
        rows = [{**row, "label": row["label"] + 0.25} for row in rows]
    test = write(tmp_path / "f", *rows)
    check_error(command("sentiment", "--model", path, "--test", test, "--out", tmp_path / "r.json"), sentence)


def test_a_teacher_of_another_kind(tuned, tmp_path):
    result = finetune(tuned, VALUE, tmp_path / "out", "--teacher", tuned / MULTI, "--steps", 1)
    check_error(result, f"The teacher is a {MULTI} model, --problem-type is {VALUE}")
    assert not (tmp_path / "out").exists()


def test_the_problem_type_is_not_for_other_tasks(tuned, tmp_path):
    check_error(
        finetune(tuned, VALUE, tmp_path / "out", task="ner"), "--problem-type is for sentiment and nli, not for ner"
    )


def test_one_class_alone_cannot_be_learnt(folder, tmp_path):
    for part in ("train", "dev"):
        write(tmp_path / f"{SINGLE}.{part}", {"text": "Oui.", "label": "bon"})
    save(load_checkpoint(folder / "lm.safetensors", ignore), tmp_path / "lm.safetensors")
    check_error(finetune(tmp_path, SINGLE, tmp_path / "out"), "1 different labels, but at least 2 are needed")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind, num_labels", [(MULTI, 3), (VALUE, 1)])
def test_zero_shot_needs_a_softmax(tmp_path, kind, num_labels):
    torch.manual_seed(0)
    names = ("entailment", "neutral", "contradiction")[:num_labels]
    path = save(SequenceClassifier(CONFIG, num_labels, names, kind), tmp_path / "model.safetensors")
    result = command("zero-shot", write(tmp_path / "lines", b"Oui."), "--model", path, "--labels", "a", "b")
    check_error(result, f"is a {kind} model: zero-shot classification needs one with a softmax")


def test_table2_compares_single_labels(folder, tmp_path):
    (tmp_path / "data" / "sentiment").mkdir(parents=True)
    write(tmp_path / "data" / "sentiment" / "all.jsonl", *examples_of(MULTI, 0))
    models = ("--teacher", folder / "lm.safetensors", "--student", folder / "lm.safetensors")
    result = command("table2", *models, "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert result.returncode == 2 and "all.jsonl line 1: label must be a string, not list" in result.stderr
