"""The command: what it writes, prints and refuses; transformers opens what it exports, model card included."""

import itertools
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file

from data import Tokenizer, demo
from data.demo.tasks import write_tasks
from model import Encoder, EncoderConfig, MaskedLM, SequenceClassifier, load_model, save_model
from model.checkpoints.load import load_checkpoint
from model.checkpoints.names import CLASSES
from model.checkpoints.native import KINDS
from tests.helpers import padded_batch, run_command
from tests.model.checkpoints.files import (
    CLASSIFIERS,
    LABELS,
    POSITIONS,
    TOKEN_TYPE,
    as_folder,
    headed_model,
    their_outputs,
)


@pytest.fixture
def theirs():
    return headed_model(MaskedLM)


@pytest.fixture
def folder(tmp_path, theirs):
    return as_folder(theirs, tmp_path / "theirs")


def run(*arguments):
    return run_command("convert_weights.py", *arguments)


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


# ---- what it writes --------------------------------------------------------------------------------------------


def test_the_round_trip(folder, theirs, tmp_path):
    from transformers import AutoModelForMaskedLM

    result = run(folder, tmp_path / "ours.safetensors")
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert load_model(tmp_path / "ours.safetensors").config == load_checkpoint(folder).config
    result = run(tmp_path / "ours.safetensors", tmp_path / "back", "--to", "hf", "--tokenizer", demo.FOLDER)
    assert result.returncode == 0 and "2 layers, hidden size 48, vocabulary size 1,005, float32" in result.stdout
    names = sorted(os.listdir(tmp_path / "back"))
    tokenizer = ["sentencepiece.bpe.model", "tokenizer_config.json"]
    assert names == ["README.md", "config.json", "model.safetensors", *tokenizer]
    assert f"Converted from `{folder}`." in card_of(tmp_path / "back")
    back, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    input_ids, mask = padded_batch((30, 1, 7), 1005)
    with torch.no_grad():
        expected = theirs(input_ids, attention_mask=mask.long()).logits
        assert (back.eval()(input_ids, attention_mask=mask.long()).logits - expected).abs().max() < 1e-6
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key in before.keys() - {POSITIONS, TOKEN_TYPE}:
        assert torch.equal(before[key], after[key]), key
    assert torch.equal(after[POSITIONS], before[POSITIONS] + before[TOKEN_TYPE])
    assert (after[TOKEN_TYPE] == 0).all()
    assert back.config.model_type == "camembert" and back.config.architectures == ["CamembertForMaskedLM"]
    assert (back.config.bos_token_id, back.config.eos_token_id, back.config.pad_token_id) == (5, 6, 1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_transformers_opens_what_is_written(kind, tmp_path):
    import transformers

    theirs = headed_model(kind)
    as_folder(theirs, tmp_path / "theirs")
    result = run(tmp_path / "theirs", tmp_path / "back", "--to", "hf", "--tokenizer", demo.FOLDER)
    assert result.returncode == 0 and kind.__name__ in result.stdout, result.stderr
    back, info = getattr(transformers, CLASSES[kind.__name__]).from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    absent = {"pooler.dense.weight", "pooler.dense.bias"} if kind is Encoder else set()
    assert set(info.pop("missing_keys")) == absent and not any(info.values()), info
    input_ids, mask = padded_batch((30, 1, 7), 1005)
    (*_, one), (*_, other) = (their_outputs(model.eval(), input_ids, mask) for model in (back, theirs))
    assert (one - other)[mask if one.ndim == 3 else ...].abs().max() < 1e-5
    if kind in CLASSIFIERS:
        assert back.config.id2label == dict(enumerate(LABELS)) and ", ".join(LABELS) in result.stdout
        assert back.config.label2id == {name: number for number, name in enumerate(LABELS)}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_precision_that_is_asked_for(folder, tmp_path, dtype):
    from transformers import AutoModelForMaskedLM

    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert run(folder, tmp_path / "hf", "--to", "hf", "--dtype", dtype).returncode == 0
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").dtype == wanted
    assert run(folder, tmp_path / "ours.safetensors", "--dtype", dtype).returncode == 0
    assert load_model(tmp_path / "ours.safetensors").bias.dtype == wanted


def test_a_classifier_of_this_project_is_copied(tmp_path):
    save_model(SequenceClassifier(EncoderConfig(1, 8, 2, 8, 20), 3), tmp_path / "in.safetensors")
    result = run(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert result.returncode == 0 and "SequenceClassifier, 1 layers, hidden size 8" in result.stdout


def test_the_encoder_alone_and_a_new_head_for_it(folder, theirs, tmp_path):
    assert run(folder, tmp_path / "e.safetensors", "--kind", "encoder").returncode == 0
    encoder = load_checkpoint(tmp_path / "e.safetensors")
    assert type(encoder) is Encoder
    input_ids, mask = padded_batch((30, 7), 1005)
    with torch.no_grad():
        expected = theirs.roberta(input_ids, attention_mask=mask.long()).last_hidden_state
        assert (encoder(input_ids, mask) - expected)[mask].abs().max() < 2e-5
    result = run(tmp_path / "e.safetensors", tmp_path / "x.safetensors", "--kind", "masked-lm")
    assert result.returncode == 2 and "--fresh-head" in result.stderr
    command = (tmp_path / "e.safetensors", tmp_path / "x.safetensors", "--kind", "masked-lm", "--fresh-head")
    assert run(*command).returncode == 0
    out = ("--tokenizer", demo.FOLDER, "--out", tmp_path / "run")
    result = run_command("train.py", "--teacher", tmp_path / "e.safetensors", *out)
    assert result.returncode == 2 and "is a bare encoder" in result.stderr


# ---- wrong commands --------------------------------------------------------------------------------------------

TOKENIZER = str(demo.FOLDER)
WRONG_COMMANDS = {
    "no such file": (["nothing.safetensors", "OUT"], "There is no file nothing.safetensors"),
    "a text as weights": (["LICENSE", "OUT"], "neither a .safetensors file nor"),
    "OUT exists": (["IN", "EXISTING"], "already exists"),
    "OUT cannot be written": (["IN", "EXISTING/sub/x.safetensors"], "cannot be written"),
    "a folder that cannot be written": (["IN", "EXISTING/sub", "--to", "hf"], "cannot be written"),
    "no such tokenizer": (["IN", "OUT", "--to", "hf", "--tokenizer", "nothing.model"], "no tokenizer nothing.model"),
    "another tokenizer": (["IN", "OUT", "--to", "hf", "--tokenizer", TOKENIZER], "does not match the model"),
    "a name too long": (["IN", "x" * 300], "File name too long"),
    "an empty name": (["IN", ""], "is empty"),
    "a tokenizer for one file": (["IN", "OUT", "--tokenizer", TOKENIZER], "--tokenizer requires --to hf"),
    "unknown format": (["IN", "OUT", "--to", "onnx"], "invalid choice"),
    "OUT missing": (["IN"], "IN and OUT are required"),
    "nothing at all": ([], "IN and OUT are required"),
    "--download without OUT": (["--download", "a/b"], "IN and OUT are required; with --download, OUT only"),
    "--check with OUT": (["IN", "OUT", "--check", "IN"], "--check takes no OUT"),
    "--check with --dtype": (["IN", "--check", "IN", "--dtype", "fp32"], "--check writes nothing"),
    "--download with IN": (["IN", "OUT", "--download", "a/b"], "give OUT only"),
    "another class": (["IN", "OUT", "--kind", "token"], "is a MaskedLM, not a TokenClassifier"),
    "OUT is a broken link": (["IN", "LINK"], "already exists"),
    "OUT is a link to an empty folder": (["IN", "LINKED", "--to", "hf"], "already exists"),
    "an untrained classifier": (["IN", "OUT", "--kind", "token", "--fresh-head"], "a classifier also needs labels"),
}


@pytest.mark.parametrize("case", WRONG_COMMANDS)
def test_a_wrong_command_is_an_error_with_status_2(tmp_path, case):
    arguments, sentence = WRONG_COMMANDS[case]
    save_model(MaskedLM(EncoderConfig(1, 8, 2, 8, 20)), tmp_path / "in.safetensors")
    (tmp_path / "existing").write_text("precious")
    links, empty = tmp_path / "links", tmp_path / "links" / "empty"
    empty.mkdir(parents=True)
    (links / "link").symlink_to(links / "nowhere")
    (links / "linked").symlink_to(empty)
    places = {"IN": tmp_path / "in.safetensors", "OUT": tmp_path / "out"}
    places |= {"LINK": links / "link", "LINKED": links / "linked"}
    arguments = [re.sub("^EXISTING", str(tmp_path / "existing"), str(places.get(a, a))) for a in arguments]
    result = run(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "existing").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["existing", "in.safetensors", "links"]
    assert sorted(os.listdir(links)) == ["empty", "link", "linked"]


def test_ctrl_c_writes_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.download.hub.download", interrupted)
    result = run("--download", "a/b", tmp_path / "out")
    assert result.returncode == 130 and "interrupted; nothing was written" in result.stderr
    assert not os.listdir(tmp_path)


# ---- models that were made here --------------------------------------------------------------------------------


def test_a_student_in_transformers_and_back(tmp_path, monkeypatch):
    """Trained here, exported, used by a pipeline of transformers, converted back: the same numbers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    out = tmp_path / "run"
    assert run_command("train.py", "--steps", 2, "--batch-size", 2, "--out", out).returncode == 0
    assert run(out / "student.safetensors", tmp_path / "hf", "--to", "hf").returncode == 0
    student, tokenizer = load_model(out / "student.safetensors"), Tokenizer(out)

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    sentences = ["Le film est <mask>.", "Une ville du nord, l'été : c'est <mask> !"]
    for sentence in itertools.chain(sentences, itertools.islice(demo.texts(), 200)):
        assert theirs(sentence)["input_ids"] == tokenizer.encode(sentence)
    assert theirs("Il pleut.", "Il neige.")["input_ids"] == tokenizer.encode("Il pleut.", "Il neige.")
    assert (len(theirs), theirs.model_max_length) == (1005, 128 + 384)

    fill = transformers.pipeline("fill-mask", model=str(tmp_path / "hf"))
    for sentence in sentences:
        input_ids = torch.tensor([tokenizer.encode(sentence)])
        expected = student(input_ids)[input_ids == tokenizer.mask_id].softmax(dim=-1)[0].topk(5)
        guesses = fill(sentence)
        assert [guess["token"] for guess in guesses] == expected.indices.tolist()
        assert [guess["score"] for guess in guesses] == pytest.approx(expected.values.tolist(), rel=1e-4)

    assert run(tmp_path / "hf", tmp_path / "back.safetensors").returncode == 0
    back = load_model(tmp_path / "back.safetensors")
    assert back.config == student.config
    for name, tensor in student.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name

    card, last = card_of(tmp_path / "hf"), json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| total | {last['loss']:.4f} |" in card and "--steps 2" in card
    assert "Distilled from `demo` by DistilCamemBERT's method, on `demo`:" in card


def test_the_folder_of_a_run_without_a_tokenizer(tmp_path):
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20))
    save_model(model, tmp_path / "run" / "student.safetensors", {"options": {"teacher": "a camembert"}})
    result = run(tmp_path / "run", tmp_path / "hf", "--to", "hf")
    assert result.returncode == 0 and "Distilled from `a camembert`" in card_of(tmp_path / "hf")
    assert f"There is no sentencepiece.bpe.model beside {tmp_path / 'run'}" in result.stderr
    assert "Name it with --tokenizer" in result.stderr


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A model fine-tuned on the demo's reviews, and one distilled from it -> their commands, their figures"""
    place = tmp_path_factory.mktemp("fine-tuned")
    write_tasks(place, {"sentiment": 40})
    parts = [word for part in ("train", "dev", "test") for word in (f"--{part}", place / "sentiment" / f"{part}.jsonl")]
    made = {}
    for name, teacher in (("tuned", ()), ("taught", ("--teacher", place / "tuned" / "model.safetensors"))):
        words = [
            "finetune",
            "sentiment",
            "--model",
            demo.TEACHER,
            *parts,
            "--steps",
            2,
            *teacher,
            "--out",
            place / name,
        ]
        result = run_command("-m eval", *words)
        assert result.returncode == 0, result.stderr
        figures = json.loads((place / name / "results.json").read_text())["runs"][0]
        made[name] = (place / name, " ".join(map(str, words)), figures)
    return made


@pytest.mark.parametrize("name", ["tuned", "taught"])
@pytest.mark.filterwarnings("ignore:'eval")
def test_the_card_of_a_fine_tuned_model(fine_tuned, name, tmp_path):
    place, words, figures = fine_tuned[name]
    native = tmp_path / "copy.safetensors"
    assert run(place, native).returncode == 0  # which keeps the provenance
    for source, target in ((place, tmp_path / "hf"), (native, tmp_path / "again")):
        assert run(source, target, "--to", "hf", "--tokenizer", demo.FOLDER).returncode == 0
        card, data = card_of(target), place.parent / "sentiment"
        assert f"Fine-tuned from `{demo.TEACHER}` for sentiment classification" in card
        assert f"```\npython -m eval {words}\n```" in card
        assert f"Trained on `{data}/train.jsonl`; best epoch chosen on `{data}/dev.jsonl`." in card
        assert f"Tested on `{data}/test.jsonl`." in card
        dev, test = (figures[part]["accuracy"]["value"] for part in ("dev", "test"))
        assert f"| accuracy | {dev:.4f} | {test:.4f} |" in card
        assert "pipeline_tag: text-classification" in card and "license:  # fill in" in card
        assert "None" not in card and "train.py" not in card
        teacher = place.parent / "tuned" / "model.safetensors"
        assert (f"distilled from `{teacher}`, a teacher of the same task" in card) == (name == "taught")
