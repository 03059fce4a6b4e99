"""python -m eval TASK: metrics by hand, --label-map, and error messages."""

import json
import zipfile
from dataclasses import replace

import pytest
import torch

from data import OptionError, Tokenizer, demo
from eval.tasks.evaluate import check_labels, check_targets, merge_logits, new_names, parse_label_map
from model import EncoderConfig, MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier, save_model
from model.checkpoints.native import fingerprint, sha256
from tests.eval.tasks.shared import ON_CPU, check_error, run_with_closed_output, save, succeeded, write
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(1, 16, 2, 16, 1005, max_positions=66)
TEXTS = ["Le film est long.", "Il habite à Brest.", "Oui.", "Non, le film est court."]
STARS = ("1 star", "2 stars", "3 stars")


def evaluate(task, *arguments):
    return run_command("-m eval", task, *ON_CPU, *arguments)


def constant(kind, labels, biases, config=CONFIG):
    """A model with the same output for every token."""
    torch.manual_seed(0)
    model = kind(config, len(labels), labels)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor(biases).log())
    return model


def test_the_metrics_and_the_file(tmp_path):
    model = constant(SequenceClassifier, STARS, [0.3, 0.5, 0.2])
    path = save(model, tmp_path / "model.safetensors")
    test = write(tmp_path / "t.jsonl", *({"text": t, "label": STARS[i % 3]} for i, t in enumerate(TEXTS)))
    out = tmp_path / "new" / "r.json"
    result = succeeded(evaluate("sentiment", "--model", path, "--test", test, "--seed", 7, "--out", out))
    written = json.loads(out.read_text())
    assert written["figures"]["accuracy"]["value"] == 0.25
    assert written["task"] == "sentiment" and written["seeds"] == [7] and written["model"] == fingerprint(model)
    assert written["files"] == {str(test): sha256(test)}
    assert written["versions"]["torch"] == torch.__version__
    assert f"--model {path}" in written["command"] and written["command"].startswith("python -m eval sentiment")
    assert f"Written: {out}" in result.stdout and "0.2500" in result.stdout
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.write(test, "a/t.jsonl")
        archive.writestr("a/other.jsonl", "{}")
    packed = tmp_path / "t.zip" / "a" / "t.jsonl"
    succeeded(evaluate("sentiment", "--model", path, "--test", packed, "--seed", 7, "--out", tmp_path / "2.json"))
    packed_result = json.loads((tmp_path / "2.json").read_text())
    assert packed_result["figures"] == written["figures"]
    assert packed_result["files"] == {str(packed): sha256(tmp_path / "t.zip")}


def test_probabilities_of_mapped_labels_are_summed(tmp_path):
    """0.3 + 0.3 for one star or two is more than 0.4 for three."""
    path = save(constant(SequenceClassifier, STARS, [0.3, 0.3, 0.4]), tmp_path / "model.safetensors")
    test = write(tmp_path / "t.jsonl", *({"text": t, "polarity": i % 2} for i, t in enumerate(TEXTS[:3])))
    out = tmp_path / "r.json"
    arguments = ("sentiment", "--model", path, "--test", test, "--out", out)
    check_error(evaluate(*arguments), "label '0'", "--label-map")
    assert not out.exists()
    succeeded(evaluate(*arguments, "--label-map", "0=1 star,2 stars", "1=3 stars"))
    assert json.loads(out.read_text())["figures"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert list(json.loads(out.read_text())["figures"]["by_label"]) == ["1 star,2 stars", "3 stars"]
    for wrong in (["0=4 stars"], ["0"], ["0=1 star", "0=2 stars"], ["0=1 star"], ["0=1 star", "1=1 star,2 stars"]):
        check_error(evaluate(*arguments, "--label-map", *wrong), "label")


def nli_figures(tmp_path, labels, *label_map, biases=(0.5, 0.2, 0.3)):
    """The figures of a model that always gives these probabilities to entailment, neutral and contradiction."""
    model = constant(SequenceClassifier, ("entailment", "neutral", "contradiction"), list(biases))
    path = save(model, tmp_path / "model.safetensors")
    rows = [{"premise": "a", "hypothesis": text, "label": label} for text, label in zip(TEXTS, labels)]
    test, out = write(tmp_path / "t.jsonl", *rows), tmp_path / "r.json"
    maps = ("--label-map", *label_map) if label_map else ()
    result = evaluate("nli", "--model", path, "--test", test, "--out", out, *maps)
    return json.loads(succeeded(result).stdout and out.read_text())["figures"]


@pytest.mark.parametrize(
    "labels, label_map, accuracy, classes",
    [
        # the same numbers in two data sets
        (
            [0, 0, 1, 2],
            ["0=entailment", "1=neutral", "2=contradiction"],
            0.5,
            ["entailment", "neutral", "contradiction"],
        ),
        (
            [0, 0, 1, 2],
            ["1=entailment", "0=neutral", "2=contradiction"],
            0.25,
            ["entailment", "neutral", "contradiction"],
        ),
        # two classes, of which one sums two of the model's; the other is the same in both
        (
            ["compatibles"] * 3 + ["contradiction"],
            ["compatibles=entailment,neutral"],
            0.75,
            ["entailment,neutral", "contradiction"],
        ),
        # several labels of the data in one class
        (["a", "b", "c", "c"], ["a=entailment", "b=entailment", "c=neutral"], 0.5, ["entailment", "neutral"]),
        # labels that begin with -, which means undecided only if the map does not say otherwise
        (
            ["-", "-1", "-x", "-"],
            ["-=neutral", "-1=entailment", "-x=contradiction"],
            0.25,
            ["entailment", "neutral", "contradiction"],
        ),
        (["entailment", "-", "-", "neutral"], [], 0.5, ["entailment", "neutral", "contradiction"]),
        # a number may mean undecided, as SNLI's -1
        ([0, -1, -1, 1], ["0=entailment", "1=neutral", "-1=-"], 0.5, ["entailment", "neutral"]),
    ],
)
def test_the_map_is_applied_before_labels_are_checked(tmp_path, labels, label_map, accuracy, classes):
    figures = nli_figures(tmp_path, labels, *label_map)
    assert figures["accuracy"]["value"] == pytest.approx(accuracy)
    assert sorted(figures["by_label"]) == sorted(classes)


def test_the_figures_are_on_disk_before_they_are_printed(tmp_path):
    """Standard output is a pipe that nobody reads any more."""
    path = save(constant(SequenceClassifier, ("a", "b"), [0.5, 0.5]), tmp_path / "model.safetensors")
    test, out = write(tmp_path / "t.jsonl", {"text": "Oui.", "label": "a"}), tmp_path / "r.json"
    assert run_with_closed_output("sentiment", "--model", path, "--test", test, "--out", out, *ON_CPU) == 0
    assert json.loads(out.read_text())["figures"]["accuracy"]["value"] == 1


def test_mapped_entity_types(tmp_path):
    path = save(constant(TokenClassifier, ("O", "I-lieu"), [0.2, 0.8]), tmp_path / "model.safetensors")
    test = write(tmp_path / "t.jsonl", {"words": ["Brest", "Nantes"], "tags": ["B-LOC", "I-LOC"]})
    arguments = ("ner", "--model", path, "--test", test, "--out", tmp_path / "r.json")
    check_error(evaluate(*arguments), "label 'LOC'", "--label-map")
    check_error(evaluate(*arguments, "--label-map", "LOC=ville"), "no label 'ville'")
    for rows, label_map in (
        ([(["Brest", "Nantes"], ["B-LOC", "I-LOC"])], ["LOC=lieu"]),
        ([(["Brest"], ["B-LOC"]), (["Nantes"], ["B-GPE"])], ["LOC=lieu", "GPE=lieu"]),
        ([(["Brest", "Nantes"], [1, 2])], ["0=O", "1=B-lieu", "2=I-lieu"]),
    ):
        write(test, *(dict(zip(("words", "tags"), row)) for row in rows))
        succeeded(evaluate(*arguments, "--label-map", *label_map))
        figures = json.loads((tmp_path / "r.json").read_text())["figures"]
        assert figures["entity_f1"]["value"] == 1
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert figures["entity_f1"]["value"] == figures["subword_f1"]["value"] == 1


@pytest.mark.parametrize("form", [(), ("--as-text",)], ids=["words", "text"])
@pytest.mark.parametrize(
    ("labels", "favoured"),
    [("O LOC PER", "PER"), ("O I-PER", "I-PER"), ("B-O B-LOC I-LOC I-PER", "I-PER"), ("O B-PER E-PER I-PER", "I-PER")],
)
def test_models_of_every_scheme(tmp_path, labels, favoured, form):
    biases = [0.9 if label == favoured else 0.1 / (len(labels.split()) - 1) for label in labels.split()]
    path = save(constant(TokenClassifier, labels.split(), biases), tmp_path / "model.safetensors")
    values = [{"words": ["Anne", "Roc"], "tags": tags} for tags in (["PER", "PER"], ["PER", "O"])]
    test = write(tmp_path / "t.jsonl", *values)
    succeeded(evaluate("ner", "--model", path, "--test", test, "--out", tmp_path / "r.json", *form))
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert figures["entity_f1"]["value"] == 0.5 and figures["overlap_recall"]["value"] == 1
    assert figures["overlap_precision"]["value"] == 0.75
    assert figures["subword_by_type"]["PER"]["precision"]["value"] == 0.625  # Roc has three pieces
    assert figures["count"] == 2


def test_a_type_that_the_data_do_not_have_can_be_mapped_to_o(tmp_path):
    path = save(constant(TokenClassifier, ("O", "B-MISC", "B-PER"), [0.3, 0.4, 0.3]), tmp_path / "model.safetensors")
    test = write(tmp_path / "t.jsonl", {"words": ["Brest", "Anne"], "tags": ["O", "B-PER"]})
    arguments = ("ner", "--model", path, "--test", test, "--out", tmp_path / "r.json")
    result = succeeded(evaluate(*arguments, "--label-map", "O=MISC"))
    assert json.loads((tmp_path / "r.json").read_text())["figures"]["entity_precision"]["value"] == 0
    assert list(json.loads((tmp_path / "r.json").read_text())["figures"]["entity_by_type"]) == ["PER"]
    assert "[" not in result.stdout  # one sentence has no interval


def test_labels_of_no_scheme(tmp_path):
    path = save(constant(TokenClassifier, ("LABEL_0", "LABEL_1"), [0.5, 0.5]), tmp_path / "model.safetensors")
    test = write(tmp_path / "t.jsonl", {"words": ["Brest"], "tags": ["O"]})
    result = evaluate("ner", "--model", path, "--test", test, "--out", tmp_path / "r.json")
    check_error(result, "The model has the tag 'LABEL_0'", "LABEL_0, LABEL_1", "BIOES")
    result = evaluate("sentiment", "--model", path, "--test", test, "--as-text")
    check_error(result, "--as-text is only for ner.")


def test_question_answering(tmp_path):
    torch.manual_seed(0)
    model = QuestionAnswerer(CONFIG)
    torch.nn.init.zeros_(model.output.weight)
    path = save(model, tmp_path / "model.safetensors")
    answers = [{"text": "Brest", "answer_start": 0}]
    test = write(tmp_path / "t.jsonl", {"context": "Brest est une ville.", "question": "Où ?", "answers": answers})
    succeeded(evaluate("qa", "--model", path, "--test", test, "--out", tmp_path / "r.json", "--max-answer", 1))
    assert json.loads((tmp_path / "r.json").read_text())["figures"]["count"] == 1
    result = evaluate("qa", "--model", path, "--test", test, "--label-map", "a=b")
    check_error(result, "--label-map is only for tasks with labels")


def test_label_maps():
    expected = {"0": ("1 star", "2 stars"), "1": ("3 stars",), "-": ("x=y",)}
    label_map = parse_label_map(["0=1 star,2 stars", "1=3 stars", "-=x=y"])
    assert label_map == expected and new_names(label_map) == {"0": "1 star,2 stars", "1": "3 stars", "-": "x=y"}
    for pairs in (["0"], ["=1 star"], ["0=1 star", "0=2 stars"], ["0="], ["0=a,"]):
        with pytest.raises(OptionError, match="--label-map"):
            parse_label_map(pairs)
    check_targets({"a": ("1 star",)}, STARS)
    for wrong, message in (({"a": ("x",)}, "no label 'x'"), ({"a": STARS[:1], "b": STARS[:2]}, "to two classes")):
        with pytest.raises(OptionError, match=message):
            check_targets(wrong, STARS)
    logits = torch.tensor([0.1, 0.2, 0.7]).log() + 3
    assert torch.allclose(merge_logits(logits, [[0, 1], [2]]).softmax(dim=0), torch.tensor([0.3, 0.7]))
    check_labels(STARS, ["3 stars"], "Do this.")
    with pytest.raises(OptionError, match=r"the label 'x', which the model does not have: .*3 stars\. Do this\.$"):
        check_labels(STARS, ["3 stars", "x"], "Do this.")


WRONG = {
    "no model": (["--test", "{test}"], "--model is missing"),
    "no test": (["--model", "{model}"], "--test is missing"),
    "missing model": (["--model", "{folder}/none", "--test", "{test}"], "none"),
    "missing test": (["--model", "{model}", "--test", "{folder}/none"], "There is no file"),
    "a folder": (["--model", "{model}", "--test", "{folder}"], "is a folder"),
    "a text instead of a model": (["--model", "{test}", "--test", "{test}"], "t.jsonl"),
    "too long": (["--model", "{model}", "--test", "{test}", "--max-length", "65"], "at most 64 tokens"),
    "too short": (["--model", "{model}", "--test", "{test}", "--max-length", "15"], "at least 16"),
    "not a number": (["--model", "{model}", "--test", "{test}", "--max-length", "x"], "invalid int"),
    "an unknown option": (["--model", "{model}", "--test", "{test}", "--nothing"], "There is no option --nothing"),
    "an unknown device": (["--model", "{model}", "--test", "{test}", "--device", "tpux"], "not 'tpux'"),
    "no tokenizer": (["--model", "{model}", "--test", "{test}", "--tokenizer", "{folder}/none"], "no tokenizer"),
    "tokenizer": (["--model", "{larger}", "--test", "{test}", "--tokenizer", "data/demo"], "does not match the model"),
    "another kind": (["--model", "{folder}/lm.safetensors", "--test", "{test}"], "MaskedLM"),
    "another task's file": (["--model", "{model}", "--test", "{folder}/qa.jsonl"], "has no"),
    "a number out of bounds": (["--model", "{model}", "--test", "{test}", "--batch-tokens", "0"], "at least 1"),
    "an impossible --out": (["--model", "{model}", "--test", "{test}", "--out", "{model}/r.json"], "r.json"),
}


@pytest.mark.parametrize("name", WRONG)
def test_error_messages(tmp_path, name):
    model = save(constant(SequenceClassifier, ("a", "b"), [0.5, 0.5]), tmp_path / "model.safetensors")
    larger = constant(SequenceClassifier, ("a", "b"), [0.5, 0.5], replace(CONFIG, vocab_size=1006))
    save_model(larger, tmp_path / "larger.safetensors")
    test = write(tmp_path / "t.jsonl", {"text": "Oui.", "label": "a"})
    write(tmp_path / "qa.jsonl", {"context": "c", "question": "q", "answers": []})
    save_model(MaskedLM(CONFIG), tmp_path / "lm.safetensors")
    given, words = WRONG[name]
    names = dict(model=model, test=test, folder=tmp_path, larger=tmp_path / "larger.safetensors")
    arguments = [argument.format(**names) for argument in given]
    default_out = [] if "--out" in given else ["--out", tmp_path / "r.json"]
    result = evaluate("sentiment", *arguments, *default_out)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "r.json").exists()


def test_no_tokenizer_beside_the_model(tmp_path):
    save_model(constant(SequenceClassifier, ("a", "b"), [0.5, 0.5]), tmp_path / "model.safetensors")
    test = write(tmp_path / "t.jsonl", {"text": "Oui.", "label": "a"})
    arguments = ("sentiment", "--model", tmp_path / "model.safetensors", "--test", test, "--out", tmp_path / "r.json")
    check_error(evaluate(*arguments), "--tokenizer")
    succeeded(evaluate(*arguments, "--tokenizer", demo.FOLDER))
    assert len(Tokenizer(demo.FOLDER)) == CONFIG.vocab_size


def test_an_unknown_command():
    for arguments in ([], ["nothing"]):
        result = run_command("-m eval", *arguments)
        assert result.returncode == 2 and "commands:" in result.stderr
    assert run_command("-m eval", "--help").returncode == 0
