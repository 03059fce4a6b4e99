"""The command: what it writes, prints and refuses; transformers opens what it exports, model card included."""

import itertools
import json
import os
import pickle
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data import Tokenizer, demo
from data.demo.tasks import write_tasks
from data.tokenizer import FILE_NAME
from model import Encoder, EncoderConfig, MaskedLM, load_model, save_model
from model.checkpoints.load import load_checkpoint
from model.checkpoints.names import CLASSES
from model.checkpoints.native import KINDS
from tests.helpers import padded_batch, run_command
from tests.model.checkpoints import files

TO_HF = ("--to", "hf", "--tokenizer", demo.FOLDER)


@pytest.fixture
def folder(tmp_path):
    return files.as_folder(files.headed_model(MaskedLM), tmp_path / "theirs")


def run(*arguments, status=0, script="convert_weights.py"):
    result = run_command(script, *arguments)
    assert result.returncode == status and "Traceback" not in result.stderr, result.stderr
    return result


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_round_trip(folder, tmp_path):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back"
    shutil.copyfile(demo.FOLDER / FILE_NAME, folder / FILE_NAME)
    assert not run(folder, ours).stderr
    assert Tokenizer(ours).sha256() == Tokenizer(demo.FOLDER).sha256()
    assert load_model(ours).config == load_checkpoint(folder).config
    assert "2 layers, hidden size 48, vocabulary size 1,005, float32" in run(ours, back, *TO_HF).stdout
    tokenizer = ["sentencepiece.bpe.model", "tokenizer_config.json"]
    assert sorted(os.listdir(back)) == ["README.md", "config.json", "model.safetensors", *tokenizer]
    assert f"Converted from `{folder.name}`." in card_of(back) and str(tmp_path) not in card_of(back)
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert torch.equal(after.pop("lm_head.decoder.bias"), after["lm_head.bias"])  # for transformers 4.46
    assert before.keys() == after.keys()
    assert torch.equal(after.pop(files.POSITIONS), before.pop(files.POSITIONS) + before[files.TOKEN_TYPE])
    assert (after.pop(files.TOKEN_TYPE) == 0).all()
    assert all(torch.equal(before[key], tensor) for key, tensor in after.items())
    config = json.loads((back / "config.json").read_text())
    assert config["model_type"] == "camembert" and config["architectures"] == ["CamembertForMaskedLM"]
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (5, 6, 1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_transformers_opens_what_is_written(kind, tmp_path):
    import transformers

    theirs, place = files.headed_model(kind, torch.float64, hidden_act="relu"), tmp_path / "back"
    printed = run(files.as_folder(theirs, tmp_path / "theirs"), place, *TO_HF).stdout
    assert kind.__name__ in printed
    back, info = getattr(transformers, CLASSES[kind.__name__]).from_pretrained(place, output_loading_info=True)
    absent = {"pooler.dense.weight", "pooler.dense.bias"} if kind is Encoder else set()
    assert set(info.pop("missing_keys")) == absent and not any(info.values()), info
    input_ids, mask = padded_batch((30, 1, 7), 1005)
    (*_, one), (*_, other) = (files.their_outputs(model.eval(), input_ids, mask) for model in (back, theirs))
    assert (one - other).abs().max() < 1e-9
    assert back.dtype == torch.float64 and back.config.hidden_act == "relu"
    if kind in files.CLASSIFIERS:
        assert back.config.id2label == dict(enumerate(files.LABELS)) and ", ".join(files.LABELS) in printed
        assert back.config.label2id == {name: number for number, name in enumerate(files.LABELS)}


@pytest.mark.parametrize(("name", "wanted"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_the_precision_that_is_asked_for(folder, tmp_path, name, wanted):
    from transformers import AutoModelForMaskedLM

    run(folder, tmp_path / "hf", "--to", "hf", "--dtype", name)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").dtype == wanted
    run(folder, tmp_path / "ours.safetensors", "--dtype", name)
    assert load_model(tmp_path / "ours.safetensors").bias.dtype == wanted


def test_the_encoder_alone_and_a_new_head_for_it(folder, tmp_path):
    path, target = tmp_path / "e.safetensors", tmp_path / "x.safetensors"
    run(folder, path, "--kind", "encoder")
    encoder = load_checkpoint(path)
    assert type(encoder) is Encoder
    files.assert_same_outputs(encoder, files.headed_model(MaskedLM).roberta)
    assert "--fresh-head" in run(path, target, "--kind", "masked-lm", status=2).stderr
    run(path, target, "--kind", "masked-lm", "--fresh-head")
    run(target, tmp_path / "hf", *TO_HF, "--license", "cc-by-4.0")
    assert "**The head is untrained**" in card_of(tmp_path / "hf")
    assert "\nlicense: cc-by-4.0\n" in card_of(tmp_path / "hf")
    settings = ("--teacher", path, "--tokenizer", demo.FOLDER, "--out", tmp_path / "run")
    assert "is a bare encoder" in run(*settings, status=2, script="train.py").stderr


TOKENIZER = str(demo.FOLDER)
WRONG_COMMANDS = {
    "no such file": (["nothing.safetensors", "OUT"], "There is no file nothing.safetensors"),
    "no such licence": (["IN", "OUT", "--to", "hf", "--license", "MIT"], "--license MIT is no name that the hub knows"),
    "a licence without a card": (["IN", "OUT", "--license", "mit"], "it needs --to hf"),
    "a text as weights": (["LICENSE", "OUT"], "neither a .safetensors file nor"),
    "a pickle that runs code": (["PICKLE", "OUT"], "was refused"),
    "OUT exists": (["IN", "EXISTING"], "already exists"),
    "OUT cannot be written": (["IN", "EXISTING/sub/x.safetensors"], "cannot be written"),
    "a folder that cannot be written": (["IN", "EXISTING/sub", "--to", "hf"], "cannot be written"),
    "no such tokenizer": (["IN", "OUT", "--to", "hf", "--tokenizer", "nothing.model"], "no tokenizer nothing.model"),
    "another tokenizer": (["IN", "OUT", "--to", "hf", "--tokenizer", TOKENIZER], "does not match the model"),
    "a name too long": (["IN", "x" * 300], "File name too long"),
    "an empty name": (["IN", ""], "is empty"),
    "unknown format": (["IN", "OUT", "--to", "gguf"], "--to must be ours, hf or onnx"),
    "ONNX in half precision": (["IN", "OUT", "--to", "onnx", "--dtype", "fp16"], "--to onnx writes fp32"),
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


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_COMMANDS.values(), ids=WRONG_COMMANDS)
def test_a_wrong_command_is_an_error_with_status_2(tmp_path, arguments, sentence):
    save_model(MaskedLM(EncoderConfig(1, 8, 2, 8, 20)), tmp_path / "in.safetensors")
    (tmp_path / "existing").write_text("precious")
    (tmp_path / "x.bin").write_bytes(pickle.dumps(files.RunsCode()))
    links = tmp_path / "links"
    (links / "empty").mkdir(parents=True)
    (links / "link").symlink_to(links / "nowhere")
    (links / "linked").symlink_to(links / "empty")
    places = {"IN": tmp_path / "in.safetensors", "OUT": tmp_path / "out"}
    places |= {"LINK": links / "link", "LINKED": links / "linked", "PICKLE": tmp_path / "x.bin"}
    arguments = [re.sub("^EXISTING", str(tmp_path / "existing"), str(places.get(a, a))) for a in arguments]
    assert sentence in run(*arguments, status=2).stderr
    assert (tmp_path / "existing").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["existing", "in.safetensors", "links", "x.bin"]
    assert sorted(os.listdir(links)) == ["empty", "link", "linked"] and not files.MARK.exists()


def test_ctrl_c_writes_nothing(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.download.hub.download", interrupted)
    assert "interrupted; nothing was written" in run("--download", "a/b", tmp_path / "out", status=130).stderr
    assert not os.listdir(tmp_path)


def test_a_student_in_transformers_and_back(tmp_path, monkeypatch):
    """Trained here, exported, used by a pipeline of transformers, converted back: the same numbers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    out, hf = tmp_path / "run", tmp_path / "hf"
    run("--steps", 2, "--batch-size", 2, "--out", out, script="train.py")
    run(out / "student.safetensors", hf, "--to", "hf")
    student, tokenizer = load_model(out / "student.safetensors"), Tokenizer(out)

    theirs = transformers.AutoTokenizer.from_pretrained(hf)
    sentences = ["Le film est <mask>.", "Une ville du nord, l'été : c'est <mask> !"]
    for sentence in itertools.chain(sentences, itertools.islice(demo.texts(), 200)):
        assert theirs(sentence)["input_ids"] == tokenizer.encode(sentence)
    assert theirs("Il pleut.", "Il neige.")["input_ids"] == tokenizer.encode("Il pleut.", "Il neige.")
    assert (len(theirs), theirs.model_max_length) == (1005, 128 + 384)

    fill = transformers.pipeline("fill-mask", model=str(hf))
    for sentence in sentences:
        input_ids = torch.tensor([tokenizer.encode(sentence)])
        expected = student(input_ids)[input_ids == tokenizer.mask_id].softmax(dim=-1)[0].topk(5)
        guesses = fill(sentence)
        assert [guess["token"] for guess in guesses] == expected.indices.tolist()
        assert [guess["score"] for guess in guesses] == pytest.approx(expected.values.tolist(), rel=1e-4)

    run(hf, tmp_path / "back.safetensors")
    back = load_model(tmp_path / "back.safetensors")
    assert back.config == student.config
    for name, tensor in student.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name

    card, last = card_of(hf), json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| total | {last['loss']:.4f} |" in card and "--steps 2" in card
    assert "Distilled from `demo` by DistilCamemBERT's method, on `demo`:" in card


def test_one_file_is_a_whole_model(folder, tmp_path):
    """Its tokenizer is inside, so that every command takes it wherever it is copied; another one is refused."""
    shutil.copyfile(demo.FOLDER / FILE_NAME, folder / FILE_NAME)
    assert "float32, with its tokenizer" in run(folder, tmp_path / "camembert.safetensors").stdout
    (tmp_path / "elsewhere").mkdir()
    whole = (tmp_path / "camembert.safetensors").rename(tmp_path / "elsewhere" / "model")  # without a suffix
    run(whole, tmp_path / "hf", "--to", "hf")
    assert (tmp_path / "hf" / FILE_NAME).read_bytes() == (demo.FOLDER / FILE_NAME).read_bytes()
    run("fill-mask", "Le film est <mask>.", "--model", whole, script="-m eval")
    run("--teacher", whole, "--steps", 1, "--out", tmp_path / "run", "--block-size", 16, script="train.py")
    student = (tmp_path / "run" / "student.safetensors").rename(tmp_path / "student.safetensors")
    run("fill-mask", "Le film est <mask>.", "--model", student, script="-m eval")
    run(student, tmp_path / "again.safetensors", "--dtype", "bf16")
    assert Tokenizer(tmp_path / "again.safetensors").content == Tokenizer(demo.FOLDER).content
    with safe_open(student, "pt") as file:  # any reader of .safetensors opens it
        assert file.get_tensor(FILE_NAME).dtype == torch.uint8
    other = tmp_path / "other.model"
    other.write_bytes(Tokenizer(student).content.replace("▁film".encode(), "▁filn".encode()))
    for script, arguments in {
        "convert_weights.py": (whole, tmp_path / "x"),
        "-m eval": ("fill-mask", "<mask>", "--model", whole),
        "train.py": ("--teacher", whole, "--out", tmp_path / "x"),
    }.items():
        refused = run(*arguments, "--tokenizer", other, script=script, status=2).stderr
        assert f"The tokenizer {other} is not the one inside {whole}" in refused
        assert not (tmp_path / "x" / "student.safetensors").exists()


def test_the_folder_of_a_run_without_a_tokenizer(tmp_path):
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20))
    save_model(model, tmp_path / "run" / "student.safetensors", {"options": {"teacher": "a camembert"}})
    printed = run(tmp_path / "run", tmp_path / "hf", "--to", "hf").stderr
    assert "Distilled from `a camembert`" in card_of(tmp_path / "hf")
    assert f"There is no sentencepiece.bpe.model inside or beside {tmp_path / 'run'}" in printed
    assert "Name it with --tokenizer" in printed


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A model fine-tuned on the demo's reviews, and one distilled from it -> their commands, their figures"""
    place = tmp_path_factory.mktemp("fine-tuned")
    write_tasks(place, {"sentiment": 40})
    parts = " ".join(f"--{part} {place}/sentiment/{part}.jsonl" for part in ("train", "dev", "test"))
    words = f"finetune sentiment --model {demo.TEACHER} {parts} --steps 2"
    commands = {
        "tuned": f"{words} --out {place}/tuned",
        "taught": f"{words} --teacher {place}/tuned/model.safetensors --out {place}/taught",
    }
    for line in commands.values():
        run(*line.split(), script="-m eval")
    return place, commands


@pytest.mark.parametrize("name", ["tuned", "taught"])
@pytest.mark.filterwarnings("ignore:'eval")
def test_the_card_of_a_fine_tuned_model(fine_tuned, name, tmp_path):
    place, commands = fine_tuned
    figures = json.loads((place / name / "results.json").read_text())["runs"][0]
    native = tmp_path / "copy.safetensors"
    printed = run(place / name, native).stdout  # the copy keeps the provenance
    assert "SequenceClassifier, 6 layers, hidden size 128" in printed
    for source, target in ((place / name, tmp_path / "hf"), (native, tmp_path / "again")):
        run(source, target, *TO_HF)
        card = card_of(target)
        assert "Fine-tuned from `teacher.safetensors` for sentiment classification" in card and "**A demo**" in card
        shown = [word.rpartition("/")[2] for word in commands[name].split()]
        assert f"```\npython -m eval {' '.join(shown)}\n```" in card and str(place.parent) not in card
        assert "Trained on `train.jsonl`; best epoch chosen on `dev.jsonl`." in card
        assert "Tested on `test.jsonl`." in card
        dev, test = (figures[part]["accuracy"]["value"] for part in ("dev", "test"))
        assert f"| accuracy | {dev:.4f} | {test:.4f} |" in card
        assert "pipeline_tag: text-classification" in card and "license: unknown" in card
        assert "None" not in card and "train.py" not in card
        assert ("distilled from `model.safetensors`, a teacher of the same task" in card) == (name == "taught")
