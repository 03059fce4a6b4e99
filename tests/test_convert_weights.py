"""Others' checkpoints in, ours out, and back: through files that transformers wrote and reads."""

import json
import os
import pickle
import re
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert_weights
from convert_weights import from_huggingface_key, load_checkpoint, to_huggingface_key
from data import demo
from model import EncoderConfig, MaskedLM, ModelError, load_model, save_model
from tests.helpers import MINI, huggingface_model, needs, padded_batch, run_command

POSITIONS = "roberta.embeddings.position_embeddings.weight"
TOKEN_TYPE = "roberta.embeddings.token_type_embeddings.weight"


@pytest.fixture
def theirs():
    return huggingface_model(vocab_size=1005).float()


@pytest.fixture
def folder(tmp_path, theirs):
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def rewrite(folder, change):
    """model.safetensors with its table of tensors changed in place by `change`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@torch.no_grad()
def assert_same(ours, theirs, tolerance=2e-5):
    input_ids, mask = padded_batch((30, 1, 7), 1005)
    expected = theirs(input_ids, attention_mask=mask.long()).logits
    assert (ours(input_ids, mask) - expected).abs().max() < tolerance


# ---- in --------------------------------------------------------------------------------------------------------


def test_a_folder_a_file_and_a_bin(folder, theirs, tmp_path, capsys):
    assert_same(load_checkpoint(folder), theirs)
    assert_same(load_checkpoint(str(folder / "model.safetensors")), theirs)
    state = theirs.state_dict()  # as old versions saved it: the tied decoder too, under its alias
    assert "lm_head.decoder.weight" in state
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert_same(load_checkpoint(folder), theirs)
        assert_same(load_checkpoint(folder / "pytorch_model.bin"), theirs)
    assert "lm_head.decoder.weight left out" in capsys.readouterr().err


def test_our_own_file(tmp_path):
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20))
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config == model.config and torch.equal(loaded.dense.weight, model.dense.weight)


def old_layernorms(tensors):
    for key in [key for key in tensors if "LayerNorm" in key]:
        new = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[new] = tensors.pop(key)


def no_prefix(tensors):
    for key in [key for key in tensors if key.startswith("roberta.")]:
        tensors[key.removeprefix("roberta.")] = tensors.pop(key)


def extra_prefix(tensors):
    for key in list(tensors):
        tensors[f"roberta.{key}"] = tensors.pop(key)


def add(**more):
    def change(tensors):
        tensors.update({key.replace("__", "."): value for key, value in more.items()})

    return change


def decoder_bias_only(tensors):
    tensors["lm_head.decoder.bias"] = tensors.pop("lm_head.bias")


def both_biases(tensors):
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()


def tied_decoder(tensors):
    tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()


VARIANTS = {
    "as saved": lambda tensors: None,
    "gamma and beta": old_layernorms,
    "no prefix": no_prefix,
    "extra prefix": extra_prefix,
    "position_ids": add(roberta__embeddings__position_ids=torch.arange(514)[None]),
    "leftover pooler": add(
        roberta__pooler__dense__weight=torch.ones(48, 48), roberta__pooler__dense__bias=torch.ones(48)
    ),
    "decoder.bias only": decoder_bias_only,
    "both biases": both_biases,
    "tied decoder": tied_decoder,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_found_in_the_wild(folder, theirs, variant):
    rewrite(folder, VARIANTS[variant])
    said = []
    assert_same(load_checkpoint(folder, said.append), theirs)
    dropped = {"position_ids": 1, "leftover pooler": 2, "both biases": 1, "tied decoder": 1}.get(variant, 0)
    assert len(said) == dropped and all("left out" in line for line in said)


def test_unknown_keys_in_config_json_are_accepted(folder, theirs):
    set_config(folder, output_past=True, torch_dtype="float32", gradient_checkpointing=False, architectures=None,
               position_embedding_type="absolute", bos_token_id=0)  # fmt: skip
    assert_same(load_checkpoint(folder), theirs)


def test_without_config_json_the_shapes_tell_and_the_rest_is_said(tmp_path):
    theirs = huggingface_model(hidden_size=128, num_attention_heads=2, vocab_size=1005).float()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    said = []
    assert_same(load_checkpoint(tmp_path / "model.safetensors", said.append), theirs)
    assert len(said) == 1 and "num_heads 2" in said[0] and "activation gelu" in said[0]


def test_other_numbers_of_token_types(folder, theirs):
    rewrite(folder, lambda tensors: tensors.update({TOKEN_TYPE: torch.cat([tensors[TOKEN_TYPE], torch.ones(1, 48)])}))
    said = []
    assert_same(load_checkpoint(folder, said.append), theirs)
    assert "rows 1 to 1" in said[0]


def test_two_dropouts_are_said(folder):
    set_config(folder, attention_probs_dropout_prob=0.3)
    said = []
    assert load_checkpoint(folder, said.append).config.dropout == 0.1
    assert "two dropouts" in said[0]


def test_several_precisions_are_made_one_and_said(folder, theirs):
    rewrite(folder, lambda tensors: tensors.update({"lm_head.bias": tensors["lm_head.bias"].double()}))
    said = []
    model = load_checkpoint(folder, said.append)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert said == [f"{folder / 'model.safetensors'} mixes float32, float64; taken as float64."]
    assert_same(model.float(), theirs)


def test_half_precision_is_kept(folder, theirs):
    rewrite(folder, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    model = load_checkpoint(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


@needs(MINI)
@torch.no_grad()
def test_a_really_trained_camembert():
    from transformers import AutoModelForMaskedLM

    theirs = AutoModelForMaskedLM.from_pretrained(MINI)
    ours = load_checkpoint(MINI)
    input_ids, mask = padded_batch((60, 1, 512), 32005)
    expected = theirs(input_ids, attention_mask=mask.long(), output_hidden_states=True)
    for state, hidden in zip(ours.encoder.hidden_states(input_ids, mask), expected.hidden_states, strict=True):
        assert (state - hidden).abs().max() < 2e-5
    assert (ours(input_ids, mask) - expected.logits).abs().max() < 2e-5 * expected.logits.abs().max()


# ---- wrong files -----------------------------------------------------------------------------------------------


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch /tmp/distilcamembert-ran-code",)


def weights(change):
    return lambda folder: rewrite(folder, change)


def pickled(thing):
    def spoil(folder):
        (folder / "model.safetensors").unlink()
        with (folder / "pytorch_model.bin").open("wb") as file:
            pickle.dump(thing, file)

    return spoil


def raw(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lie(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 50) + path.read_bytes()[8:])


def cut_bin(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])


def state_as_bin(change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    return spoil


def sparse(tensors):
    tensors["lm_head.dense.weight"] = tensors["lm_head.dense.weight"].to_sparse()


def meta(tensors):
    tensors["lm_head.dense.weight"] = tensors["lm_head.dense.weight"].to("meta")


def expand(tensors):
    tensors[POSITIONS] = torch.zeros(1, 48).expand(10**12, 48)


def share(tensors):
    tensors["roberta.encoder.layer.1.output.dense.weight"] = tensors["roberta.encoder.layer.0.output.dense.weight"]


def bomb(folder):
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 10**7)


def poison(tensors):
    tensors["lm_head.dense.weight"][3, 4] = float("nan")


def rename_head(tensors):
    for key in [key for key in tensors if key.startswith("lm_head.")]:
        tensors["classifier." + key] = tensors.pop(key)


def drop_head(tensors):
    for key in [key for key in tensors if key.startswith("lm_head.")]:
        del tensors[key]


def untie(tensors):
    tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"] + 1


def shorten(key):
    return lambda tensors: tensors.update({key: tensors[key][:-1].clone()})


WRONG = {
    "empty": (raw(b""), "is empty"),
    "text as weights": (raw("Le camembert est délicieux.\n".encode() * 99), "neither a .safetensors file nor"),
    "truncated": (truncate, "not a whole .safetensors"),
    "lying header": (lie, "not a whole .safetensors"),
    "a cut .bin": (cut_bin, "cannot be read as weights"),
    "a pickle that runs code": (pickled({"x": RunsCode()}), "refused"),
    "a pickle of something else": (pickled([1, 2, 3]), "not a table of named tensors|refused"),
    "no weights in the folder": (lambda folder: (folder / "model.safetensors").unlink(), "holds neither"),
    "missing tensor": (
        weights(lambda tensors: tensors.pop("roberta.encoder.layer.1.output.dense.bias")),
        r"lacks the tensor encoder\.layer\.1\.output\.dense\.bias",
    ),
    "missing layer": (
        weights(lambda tensors: [tensors.pop(key) for key in list(tensors) if ".layer.0." in key]),
        r"lacks the tensor encoder\.layer\.0\.",
    ),
    "missing positions": (weights(lambda tensors: tensors.pop(POSITIONS)), "fits no position embeddings"),
    "wrong shape": (
        weights(shorten("roberta.encoder.layer.1.attention.self.query.weight")),
        r"encoder\.layer\.1\.attention\.self\.query\.weight has shape \(47, 48\), .* \(48, 48\)",
    ),
    "wrong token type": (
        weights(lambda tensors: tensors.update({TOKEN_TYPE: torch.ones(1, 47)})),
        "fits no position embeddings",
    ),
    "unknown tensor": (
        weights(add(roberta__encoder__layer__0__adapter__weight=torch.ones(3))),
        r"a tensor encoder\.layer\.0\.adapter\.weight that a masked LM",
    ),
    "a tensor under our own name": (weights(add(roberta__norm__weight=torch.ones(48))), "a tensor norm.weight that"),
    "position_ids that are none": (
        weights(add(roberta__embeddings__position_ids=torch.arange(514).flip(0))), "embeddings.position_ids that",
    ),
    "another pooler": (weights(add(pooler__other=torch.ones(2))), "a tensor pooler.other that"),
    "NaN": (weights(poison), r"lm_head\.dense\.weight holds NaN or infinity"),
    "sparse": (state_as_bin(sparse), "lm_head.dense.weight is no plain table"),
    "without numbers": (state_as_bin(meta), "lm_head.dense.weight is no plain table"),
    "a table of 10^12 rows": (state_as_bin(expand), "claims more numbers than the file holds"),
    "shared layers": (state_as_bin(share), "are one tensor, which CamemBERT does not share"),
    "a zip bomb": (bomb, "is a compressed archive"),
    "a table of one dimension": (
        weights(lambda tensors: tensors.update({"roberta.embeddings.word_embeddings.weight": torch.ones(9)})),
        "holds no CamemBERT",
    ),
    "config nested without end": (lambda folder: (folder / "config.json").write_text("[" * 200_000), "as JSON"),
    "two for one place": (weights(add(embeddings__LayerNorm__weight=torch.ones(48))), "two tensors for one place"),
    "whole numbers": (
        weights(lambda tensors: tensors.update({"lm_head.bias": torch.zeros(1005, dtype=torch.long)})),
        "holds torch.int64",
    ),
    "untied": (weights(untie), "they are one tensor in CamemBERT"),
    "two different biases": (weights(add(lm_head__decoder__bias=torch.ones(1005))), "they are one tensor"),
    "a classifier": (weights(rename_head), "is a classifier and not a masked LM"),
    "a bare encoder": (weights(drop_head), "is a bare encoder: its LM head is missing"),
    "another model": (lambda folder: save_file({"w": torch.ones(2)}, folder / "model.safetensors"), "no CamemBERT"),
    "another architecture": (lambda folder: set_config(folder, model_type="bert"), "model_type 'bert'"),
    "relative positions": (
        lambda folder: set_config(folder, position_embedding_type="relative_key"), "position_embedding_type"
    ),
    "a decoder": (lambda folder: set_config(folder, is_decoder=True), "is_decoder True"),
    "0 heads": (lambda folder: set_config(folder, num_attention_heads=0), "num_heads is 0"),
    "769 / 12": (lambda folder: set_config(folder, hidden_size=769, num_attention_heads=12), "hidden_size 769"),
    "a billion layers": (lambda folder: set_config(folder, num_hidden_layers=10**9), "speaks of 1000000000 layers"),
    "text for a number": (lambda folder: set_config(folder, vocab_size="many"), "vocab_size must be a whole number"),
    "other activation": (lambda folder: set_config(folder, hidden_act="gelu_new"), "activation 'gelu_new'"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "not a configuration"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_a_sentence(folder, case):
    spoil, sentence = WRONG[case]
    spoil(folder)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_checkpoint(folder, lambda line: None)
    assert str(folder) in str(caught.value)
    assert not os.path.exists("/tmp/distilcamembert-ran-code")


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ModelError, match="There is no file"):
        load_checkpoint(tmp_path / "nothing.safetensors")


# ---- the table, and out ----------------------------------------------------------------------------------------


def test_the_key_table_is_one_to_one(theirs):
    with torch.device("meta"):
        ours = MaskedLM(EncoderConfig(2, 48, 4, 80, 1005))
    exported = {to_huggingface_key(key) for key in ours.state_dict()}
    assert len(exported) == len(ours.state_dict())
    aliases = {"lm_head.decoder.weight", "lm_head.decoder.bias", TOKEN_TYPE}
    assert exported == set(theirs.state_dict()) - aliases
    for key in ours.state_dict():
        assert from_huggingface_key(to_huggingface_key(key).removeprefix("roberta.")) == key


def run(*arguments):
    return run_command("convert_weights.py", *arguments)


def test_round_trip_by_the_commands(folder, theirs, tmp_path):
    from transformers import AutoModelForMaskedLM

    result = run(folder, tmp_path / "ours.safetensors")
    assert result.returncode == 0 and not result.stderr, result.stderr
    result = run(tmp_path / "ours.safetensors", tmp_path / "back", "--to", "hf", "--tokenizer", demo.FOLDER)
    assert result.returncode == 0 and "2 layers of 48" in result.stdout
    names = sorted(os.listdir(tmp_path / "back"))
    assert names == ["config.json", "model.safetensors", "sentencepiece.bpe.model"]
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


def test_round_trip_in_float64_is_exact_to_1e9(tmp_path):
    from transformers import AutoModelForMaskedLM

    theirs = huggingface_model(vocab_size=1005, hidden_act="relu")
    theirs.save_pretrained(tmp_path / "theirs")
    convert_weights.export_huggingface(load_checkpoint(tmp_path / "theirs"), tmp_path / "back")
    back = AutoModelForMaskedLM.from_pretrained(tmp_path / "back").eval()
    assert back.dtype == torch.float64 and back.config.hidden_act == "relu"
    input_ids, mask = padded_batch((30, 1, 7), 1005)
    with torch.no_grad():
        outputs = [model(input_ids, attention_mask=mask.long()).logits for model in (back, theirs)]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-9


WRONG_COMMANDS = {
    "no such file": (["nothing.safetensors", "OUT"], "There is no file nothing.safetensors"),
    "a text as weights": (["LICENSE", "OUT"], "neither a .safetensors file nor"),
    "OUT is there": (["IN", "EXISTING"], "is there already"),
    "OUT cannot be written": (["IN", "EXISTING/sub/x.safetensors"], "cannot be written"),
    "a folder that cannot be written": (["IN", "EXISTING/sub", "--to", "hf"], "cannot be written"),
    "no such tokenizer": (["IN", "OUT", "--to", "hf", "--tokenizer", "nothing.model"], "no tokenizer nothing.model"),
    "another tokenizer": (["IN", "OUT", "--to", "hf", "--tokenizer", str(demo.FOLDER)], "do not belong together"),
    "a name too long": (["IN", "x" * 300], "File name too long"),
    "an empty name": (["IN", ""], "is empty"),
    "a tokenizer for our file": (["IN", "OUT", "--tokenizer", str(demo.FOLDER)], "--tokenizer goes with --to hf"),
    "unknown form": (["IN", "OUT", "--to", "onnx"], "invalid choice"),
    "OUT missing": (["IN"], "OUT"),
}


@pytest.mark.parametrize("case", WRONG_COMMANDS)
def test_a_wrong_command_is_a_sentence_with_status_2(tmp_path, case):
    arguments, sentence = WRONG_COMMANDS[case]
    save_model(MaskedLM(EncoderConfig(1, 8, 2, 8, 20)), tmp_path / "in.safetensors")
    (tmp_path / "existing").write_text("precious")
    places = {"IN": tmp_path / "in.safetensors", "OUT": tmp_path / "out"}
    arguments = [re.sub("^EXISTING", str(tmp_path / "existing"), str(places.get(a, a))) for a in arguments]
    result = run(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "existing").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["existing", "in.safetensors"]


def test_our_classifier_is_copied_without_a_word_too_many(tmp_path):
    from model import SequenceClassifier

    save_model(SequenceClassifier(EncoderConfig(1, 8, 2, 8, 20), 3), tmp_path / "in.safetensors")
    result = run(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert result.returncode == 0 and "SequenceClassifier, 1 layers of 8" in result.stdout


def test_other_heads_are_not_exported_yet(tmp_path):
    from model import QuestionAnswerer

    with pytest.raises(ModelError, match="not a QuestionAnswerer"):
        convert_weights.export_huggingface(QuestionAnswerer(EncoderConfig(1, 8, 2, 8, 20)), tmp_path / "out")
    assert not os.listdir(tmp_path)


def test_what_is_written_can_be_read_again(folder, tmp_path):
    save_model(load_checkpoint(folder), tmp_path / "ours.safetensors")
    assert load_model(tmp_path / "ours.safetensors").config == load_checkpoint(folder).config
