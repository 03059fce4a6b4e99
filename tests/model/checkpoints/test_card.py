"""The model card: what it says of each way in which a model can be made, and of damaged provenance.

huggingface_hub reads the front matter, and the program in each card runs with transformers.
"""

import contextlib
import io
import json
import re

import pytest
import torch
from huggingface_hub import ModelCard

from convert_weights import main
from data import Tokenizer, demo
from model import Encoder, EncoderConfig, MaskedLM, save_model
from model.checkpoints.card import model_card
from model.checkpoints.export import export_huggingface
from model.checkpoints.licences import LICENCE_NAMES
from model.heads import QuestionAnswerer, SequenceClassifier, TokenClassifier

CONFIG = EncoderConfig(2, 8, 2, 8, 1005, 40)
COMMIT = "0123456789" * 4
BASE = f"almanach/camembert-base@{COMMIT}"
DISTILLED = {
    "options": {"teacher": "/home/jeanne/camembert.safetensors", "corpus": ["/srv/jeanne/oscar/", "hub:a/b@main"]}
    | {"steps": 10, "batch_size": 8, "accumulate": 4, "block_size": 128, "student": None, "tokenizer": None}
    | {"out": "/home/jeanne/runs", "cache": "/tmp/jeanne", "layers": ["alternate"], "within_documents": False},
    "runtime": {"device": "cuda", "precision": "bf16"},
    "versions": {"python": "3.11", "torch": "2.13"},
    "held_out_accuracy": {"teacher": 0.5, "student after": 0.4321},
    "held_out": {"accuracy": 0.4321, "pseudo_perplexity": 12.5, "loss": 1.5},
    "origins": {"models": {"teacher": BASE}, "datasets": ["c/d"], "demo": False},
}
METRICS = {"step": 10, "loss": 1.25, "soft_label_loss": 0.5, "cosine_loss": None, "mlm_loss": 2.0}
FINE_TUNED = {
    "task": "nli",
    "model": "0123",
    "teacher": None,
    "command": "python -m eval finetune nli --model /home/jeanne/student.safetensors --train /x/a.tsv 'jeanne\\b.tsv' "
    "--dev=jeanne/dev.tsv --label-map 0=entailment --out /home/jeanne/",
    "options": {"model": "/home/jeanne/student.safetensors", "train": ["/x/a.tsv", "jeanne\\b.tsv"]}
    | {"dev": ["jeanne/dev.tsv"], "test": [], "teacher": None, "soft_weight": 0.7, "temperature": 2.0, "lr": 5e-5},
    "files": {"/x/a.tsv": "45", "jeanne/x.zip/b.tsv": "67", "C:\\Users\\jeanne\\dev.tsv": "89"},
    "seeds": [0, 1],
    "examples": {"train": "ab", "dev": "cd"},
    "versions": {"python": "3.11"},
    "run": {"seed": 1, "epoch": 3, "dev": {"accuracy": {"value": 0.75}, "macro_f1": {"value": 1e-05}, "count": 8}},
    "origins": {"models": {"model": BASE}, "datasets": [], "demo": False},
}
TAUGHT = {
    **FINE_TUNED,
    "options": {**FINE_TUNED["options"], "teacher": "/home/jeanne/tuned/model.safetensors", "test": ["/x/test.tsv"]},
    "run": {**FINE_TUNED["run"], "test": {"accuracy": {"value": 0.625}}},
}
MLM_ONLY = {"options": {**DISTILLED["options"], "teacher": "none"}, "held_out": DISTILLED["held_out"]}
CONVERTED = {"converted from": BASE}
MADE = {"distilled": DISTILLED, "without a teacher": MLM_ONLY, "fine-tuned": FINE_TUNED, "taught": TAUGHT}
MADE |= {"converted": CONVERTED, "from a folder": {"converted from": "/home/jeanne/camembert"}, "nothing": {}}


def make(kind, *head):
    return kind(CONFIG, *head).eval()


MODELS = {
    "masked-lm": make(MaskedLM),
    "sequence": make(SequenceClassifier, 2),
    "token": make(TokenClassifier, 2),
    "question": make(QuestionAnswerer),
    "encoder": make(Encoder),
}


def card_of(model="masked-lm", provenance=DISTILLED, metrics=METRICS, results=None, **settings):
    return model_card(MODELS.get(model, model), "a-name", provenance, metrics, results or {}, **settings)


def front(card):
    """The front matter, as huggingface_hub reads it."""
    return ModelCard(card).data


def figures(card):
    return [(r.task_type, r.dataset_split, r.metric_type, r.metric_value) for r in front(card).eval_results or ()]


def assert_says(card, *sentences, absent=()):
    assert [each for each in sentences if each not in card] == []
    assert [each for each in absent if each in card] == []


# ---- every way in which a model is made --------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("made", MADE)
def test_no_card_has_a_local_path_and_the_hub_reads_all(made, model):
    card = card_of(model, MADE[made])
    assert_says(card, absent=("jeanne", "/home", "Users", "/srv", "/x/", "/tmp", "\\\\", "None"))
    data = front(card)
    assert data.language == "fr" and data.license in LICENCE_NAMES and data.library_name == "transformers"
    assert {"camembert", "french"} <= set(data.tags)


def test_a_student():
    card, data = card_of(), front(card_of())
    assert (data.pipeline_tag, data.base_model) == ("fill-mask", "almanach/camembert-base")
    assert (data.base_model_relation, data.datasets, data.license) == ("finetune", ["a/b", "c/d"], "unknown")
    assert "distillation" in data.tags and "demo" not in data.tags and data.model_name == "a-name"
    assert figures(card) == [
        ("fill-mask", "validation", "accuracy", 0.4321),
        ("fill-mask", "validation", "perplexity", 12.5),
    ]
    assert_says(card, f"Distilled from `camembert.safetensors` (from `{BASE}`) by DistilCamemBERT's method, on `oscar`")
    assert_says(card, "python train.py --teacher camembert.safetensors --corpus oscar hub:a/b@main --steps 10 ")
    assert_says(card, "10 steps of 4,096 tokens, 40,960 in all, computed in bf16.", "torch 2.13", "stored as float32.")
    assert_says(card, "step 10", "| total | 1.2500 |", "| masked LM | 2.0000 |", "| student after | 43.2% |")
    assert_says(card, "The licence of `almanach/camembert-base` is `mit`.", "Not stated")
    assert_says(card, absent=("cosine", "--tokenizer", "--out", "--cache"))  # unknown values are left out
    assert "Training losses" not in card_of(metrics={})
    assert "extended" not in card and "extended" not in card_of(provenance={**DISTILLED, "schedules": [10]})
    card = card_of(provenance={**DISTILLED, "schedules": [4, 6, 10]})
    assert_says(card, "extended, from 4 to 6 to 10 steps: before, its learning rate decayed towards 0 at step 6.")


def test_a_teacher_and_a_student_of_the_hub():
    options = {**DISTILLED["options"], "teacher": f"a/teacher@{COMMIT}", "student": "/y/jeanne/s.safetensors"}
    card = card_of(provenance={**DISTILLED, "options": options})
    assert_says(card, f"Distilled from `a/teacher@{COMMIT}`", ", beginning with `s.safetensors`, on")
    assert_says(card, f"--teacher a/teacher@{COMMIT} ", absent=("jeanne",))
    assert front(card).base_model is None  # that of the weights that it began with, not that of the teacher
    known = {"models": {"student": f"b/c@{COMMIT}"}}
    assert front(card_of(provenance={"options": options, "origins": known})).base_model == "b/c"


def test_a_model_without_a_teacher():
    card = card_of(provenance=MLM_ONLY)
    assert_says(card, "Trained from random weights, without a teacher, on `oscar`", "train.py --teacher none --corpus")
    assert_says(card, absent=("Distilled", "distillation"))
    assert front(card).base_model is None and len(figures(card)) == 2


def test_a_demo():
    for provenance in (
        {"options": {"teacher": "demo", "corpus": ["demo"]}},
        {"options": {**DISTILLED["options"], "corpus": ["demo"]}},
        {**FINE_TUNED, "origins": {"demo": True}},
    ):
        card = card_of("sequence" if "task" in provenance else "masked-lm", provenance)
        assert "**A demo**" in card and "demo" in front(card).tags


@pytest.mark.parametrize("licence", [None, "cc-by-4.0"])
def test_converted_models(licence):
    """LICENCE_NAMES has names as the hub's list has them, which is broken over lines here."""
    assert {"cc-by-2.5", "cc-by-nc-nd-3.0"} < LICENCE_NAMES
    assert all(name[-1] != "-" and name[:3] not in ("by-", "nc-", "nd-", "sa-") for name in LICENCE_NAMES)
    card = card_of("token", CONVERTED, licence=licence)
    assert_says(card, f"Converted from `{BASE}`.", absent=("losses", "train.py", "distillation"))
    data = front(card)
    assert (data.base_model, data.license) == ("almanach/camembert-base", licence or "mit")
    assert (data.pipeline_tag, data.eval_results) == ("token-classification", None)
    other = front(card_of("token", {"converted from": f"a/b@{COMMIT}"}, licence=licence))
    assert (other.base_model, other.license) == ("a/b", licence or "unknown")
    card = card_of("token", {"converted from": "models/camembert"}, licence=licence)  # a path like owner/name
    assert "Converted from `camembert`." in card and front(card).base_model is None


# ---- fine-tuned models -------------------------------------------------------------------------------------------


def test_a_fine_tuned_model():
    card = card_of("sequence", {**FINE_TUNED, "converted from": "x"})
    assert_says(card, "(epoch 3, seed 1)", "python 3.11", "| figure | dev |\n| --- | --- |\n| accuracy | 0.7500 |\n")
    assert_says(card, f"Fine-tuned from `student.safetensors` (from `{BASE}`) for natural language inference:\n")
    command = "--model student.safetensors --train a.tsv b.tsv --dev=dev.tsv --label-map 0=entailment --out folder"
    assert_says(card, f"```\npython -m eval finetune nli {command}\n```")
    assert_says(card, "Trained on `a.tsv`, `b.tsv`; best epoch chosen on `dev.tsv`.\n")
    assert_says(card, absent=("istilled", "train.py", "Tested", "| test", "losses", "unknown`", "Converted", "count"))
    expected = [("accuracy", 0.75), ("f1", 1e-05)]
    assert figures(card) == [("text-classification", "validation", *each) for each in expected]
    assert front(card).metrics == ["accuracy", "f1"] and front(card).base_model == "almanach/camembert-base"


def test_a_fine_tuned_model_with_a_teacher_and_a_test_set():
    card = card_of("sequence", TAUGHT)
    assert_says(card, "distilled from `model.safetensors`, a teacher of the same task", "Tested on `test.tsv`.")
    assert_says(card, "(weight of its soft labels 0.7, temperature 2.0)")
    assert_says(card, "| figure | dev | test |\n| --- | --- | --- |\n| accuracy | 0.7500 | 0.6250 |\n")
    assert ("text-classification", "test", "accuracy", 0.625) in figures(card)
    assert "distillation" in front(card).tags


def test_the_mean_over_the_seeds_of_results_json():
    over_seeds = {"dev": {"accuracy": {"mean": 0.5, "deviation": 0.25}}, "test": {"accuracy": {"mean": 0.25}}}
    results = {"runs": [{}, TAUGHT["run"]], "over_seeds": over_seeds}
    card = card_of("sequence", TAUGHT, results=results)
    assert_says(card, "the best on dev of 2 seeds", "| dev, mean of 2 seeds | test, mean of 2 seeds |")
    assert_says(card, "| accuracy | 0.7500 | 0.6250 | 0.5000 ± 0.2500 | 0.2500 |")
    assert figures(card) == figures(card_of("sequence", TAUGHT))  # of the one seed that is saved
    assert "mean of" not in card_of("sequence", TAUGHT, results={**results, "runs": [TAUGHT["run"]]})


def test_a_model_of_table2_whose_examples_were_split():
    files = [*FINE_TUNED["files"]]
    options = {**FINE_TUNED["options"], "train": files, "dev": files}
    card = card_of("sequence", {**FINE_TUNED, "options": options})
    assert "Trained and evaluated on parts of `a.tsv`, `b.tsv`, `dev.tsv`." in card and "Trained on" not in card
    assert [each.dataset_name for each in front(card).eval_results] == ["dev part of a.tsv, b.tsv, dev.tsv"] * 2


# ---- what is exported is not what was measured -------------------------------------------------------------------


@pytest.mark.parametrize("made", [DISTILLED, FINE_TUNED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_have_no_figures_of_their_own(made, dtype):
    model = (SequenceClassifier(CONFIG, 2) if "task" in made else MaskedLM(CONFIG)).to(dtype)
    card = card_of(model, made)
    assert_says(card, f"stored as {str(dtype)[6:]}. Figures above were measured before the weights were rounded.")
    assert figures(card) == [] and front(card).metrics is None


def test_weights_that_were_rounded_before_have_no_figures(tmp_path, capsys):
    save_model(MODELS["masked-lm"], tmp_path / "model", DISTILLED)
    main([str(tmp_path / "model"), str(tmp_path / "bf16"), "--dtype", "bf16"])
    for source, path in (("model", "as-is"), ("bf16", "wide")):
        main([str(tmp_path / source), str(tmp_path / path), "--to", "hf", "--dtype", "fp32"])
    cards = [(tmp_path / path / "README.md").read_text() for path in ("as-is", "wide")]
    assert len(figures(cards[0])) == 2 and figures(cards[1]) == []
    assert ["were rounded." in card for card in cards] == [False, True]


def test_another_head_has_no_figures():
    for model, made in (("encoder", DISTILLED), ("encoder", FINE_TUNED), ("masked-lm", FINE_TUNED)):
        card = card_of(model, made)
        assert figures(card) == [] and "with the head that was left out or replaced here" in card
    card = card_of("masked-lm", {**DISTILLED, "fresh_head": True})
    assert figures(card) == [] and "**The head is untrained**" in card


@pytest.mark.parametrize(
    "kind, setting, sentence",
    [
        ("sequence", {"problem_type": "regression"}, "The output is a value"),
        ("sequence", {"problem_type": "multi_label_classification"}, "A text can have several labels"),
        ("question", {"no_answer_threshold": -1.25}, "more than -1.2500 (transformers' `null_score_diff_threshold`)"),
        ("question", {"no_answer_threshold": 2}, "by more than 2.0000"),
    ],
)
def test_how_outputs_are_read(kind, setting, sentence, monkeypatch):
    assert sentence not in card_of(kind, {})
    for name, value in setting.items():
        monkeypatch.setattr(MODELS[kind], name, value)
    assert_says(card_of(kind, {}), sentence)


@pytest.mark.parametrize("kind", [*MODELS, "nli"])
def test_the_program_of_each_card_runs(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    model = MODELS["sequence" if kind == "nli" else kind]
    card = card_of(model, FINE_TUNED if kind == "nli" else {})
    export_huggingface(model, tmp_path / "hf", Tokenizer(demo.FOLDER), card)
    monkeypatch.chdir(tmp_path / "hf")
    (program,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    assert printed.getvalue().strip() and ("text_pair" in program) == (kind == "nli")
    assert "```python" not in card_of(model, {}, has_tokenizer=False)


# ---- damaged and hostile provenance ------------------------------------------------------------------------------

HOSTILE = 'x"\n---\nlicense: mit\n```\n# `title` | <script>alert(1)</script> ![a](http://b) \u2028\x07: - {'

DEEP = json.loads("[" * 400 + "]" * 400)
DAMAGED = [None, 3, True, HOSTILE, [1], {"a": 1}, [None, {}], float("nan"), DEEP]


@pytest.mark.parametrize("provenance", [DISTILLED, FINE_TUNED], ids=["distilled", "fine-tuned"])
@pytest.mark.parametrize("value", DAMAGED, ids=lambda value: str(value)[:10])
def test_damaged_provenance_still_gives_a_card(provenance, value):
    """Each value in turn is replaced, at every depth."""

    def damaged(tree):
        for key, inner in tree.items():
            yield {**tree, key: value}
            if isinstance(inner, dict):
                yield from ({**tree, key: other} for other in damaged(inner))

    model = "sequence" if "task" in provenance else "masked-lm"
    trees = (*damaged(provenance), dict.fromkeys(provenance, value), {**provenance, HOSTILE: value})
    for tree, metrics in [*((tree, METRICS) for tree in trees), *((provenance, each) for each in damaged(METRICS))]:
        card = card_of(model, tree, metrics, results={**tree, "runs": [value] * 3, "over_seeds": tree})
        lines = card.splitlines()
        assert "None" not in card and "[[" not in card
        assert lines[0] == "---" and lines.count("---") == 2
        assert sum(each.startswith("```") for each in lines) in (2, 4)
        assert sum(each.startswith("# ") for each in lines) == 1
        assert front(card).license == "unknown" and front(card).language == "fr"
        prose = re.sub("(?s)^---.*?\n---\n|```.*?\n```|(?<!\\\\)`.*?`", "", card)
        assert "<script" not in prose.replace(r"\<", "") and "![" not in prose


def test_hostile_names_of_figures_and_files():
    run = {"seed": 0, "epoch": 1, "dev": {HOSTILE: {"value": 0.5}, "yes": {"value": 1.0}, "1e5": {"value": 0.25}}}
    options = {**FINE_TUNED["options"], "dev": [HOSTILE]}
    card = card_of("sequence", {**FINE_TUNED, "run": run, "options": options})
    found = front(card).eval_results
    assert [each.metric_value for each in found] == [0.5, 1.0, 0.25]
    assert [each.metric_type for each in found][1:] == ["yes", "1e5"]
    assert all(isinstance(each.dataset_name, str) and "\n" not in each.dataset_name for each in found)
    assert front(model_card(MODELS["sequence"], HOSTILE, FINE_TUNED, {}, {})).model_name.startswith('x" --- license')
