"""Three hundred damaged and hostile checkpoints: each is a clear sentence or, where only a weight changed, a model."""

import argparse
import contextlib
import copy
import gc
import json
import os
import pickle
import random
import re
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import ModelError
from model.checkpoints.load import load_checkpoint
from tests.helpers import huggingface_model, run_command

MARK = "/tmp/distilcamembert-fuzz-ran-code"


class RunsCode:
    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small checkpoint as .safetensors, .bin (new and old form) and fairseq's, each with a config.json."""
    place = tmp_path_factory.mktemp("sound")
    theirs = huggingface_model(vocab_size=101, max_position_embeddings=40).float()
    theirs.save_pretrained(place)
    state = theirs.state_dict()
    torch.save(state, place / "new.bin")
    torch.save(state, place / "old.bin", _use_new_zipfile_serialization=False)
    arguments = argparse.Namespace(encoder_attention_heads=4)
    torch.save({"model": fairseq_names(state), "args": arguments}, place / "model.pt")
    for name in SOURCES:
        load_checkpoint(place / name, lambda line: None)  # undamaged, each is taken
    return place


def fairseq_names(state):
    """By the table of the facts, written once more."""
    names = {
        "roberta.embeddings.word_embeddings": "sentence_encoder.embed_tokens",
        "roberta.embeddings.position_embeddings": "sentence_encoder.embed_positions",
        "roberta.embeddings.LayerNorm": "sentence_encoder.emb_layer_norm",
        "roberta.encoder.layer": "sentence_encoder.layers",
        "attention.self.query": "self_attn.q_proj",
        "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.out_proj",
        "attention.output.LayerNorm": "self_attn_layer_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        "output.LayerNorm": "final_layer_norm",
        "lm_head.decoder.weight": "lm_head.weight",
    }
    result = {}
    for key, tensor in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        if "token_type" not in key and key != "lm_head.decoder.bias":
            result[f"decoder.{key}"] = tensor
    return result


def truncate(content, chance):
    return content[: chance.randrange(len(content))]


def flip_bits(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice([1, 8, 64])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def flip_early_bits(content, chance):
    """In headers and pickles, where flips hurt most."""
    return flip_bits(content[:2000], chance) + content[2000:]


def splice(content, chance):
    start, stop = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:start] + content[stop:]


def repeat(content, chance):
    start, stop = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:stop] + content[start:]


def swap_numbers(content, chance):
    """Shapes, offsets and lengths that are absurd, in a header that stays readable."""
    absurd = chance.choice([b"0", b"99999999999999", b"-1", b"1e9", b"null"])
    places = [match.span() for match in re.finditer(rb"\d+", content[:4000])]
    start, stop = chance.choice(places)
    return content[:start] + absurd + content[stop:]


def lie_about_the_header(content, chance):
    return struct.pack("<Q", chance.choice([0, 1, 2**20, 2**40, 2**63])) + content[8:]


def noise(content, chance):
    return chance.randbytes(chance.randrange(1, 5000))


def hostile_pickle(content, chance):
    return pickle.dumps({"roberta.embeddings.word_embeddings.weight": RunsCode()}, protocol=chance.choice([0, 2, 4]))


DAMAGES = (truncate, flip_bits, flip_early_bits, splice, repeat, swap_numbers, lie_about_the_header, noise,
           hostile_pickle)  # fmt: skip
SOURCES = ("model.safetensors", "new.bin", "old.bin", "model.pt")


def resident() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files(sound, tmp_path, damage):
    """27 files a damage, and none of them takes code, a minute or memory."""
    refused = 0
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident()
    for seed in range(27):
        chance = random.Random(f"{damage.__name__} {seed}")
        name = SOURCES[seed % len(SOURCES)]
        path = tmp_path / f"{seed}{Path(name).suffix}"
        path.write_bytes(damage((sound / name).read_bytes(), chance))
        (tmp_path / "config.json").write_bytes((sound / "config.json").read_bytes())
        start = time.monotonic()
        try:
            model = load_checkpoint(path, lambda line: None)
        except ModelError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 1000
        else:
            assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        assert time.monotonic() - start < 10
        assert not os.path.exists(MARK)
    assert refused >= (5 if damage in (flip_bits, flip_early_bits, splice, repeat) else 20)
    assert resident() - before < 150e6


@pytest.mark.parametrize("form", ["sound", "bin", "fairseq", "one number in float64", "a wrong shape at the end"])
def test_memory_is_at_most_half_again_the_file(tmp_path, form):
    theirs = huggingface_model(vocab_size=20_000, hidden_size=640, intermediate_size=640).float()
    tensors = {key: tensor for key, tensor in theirs.state_dict().items() if "decoder" not in key}
    path = tmp_path / "model.safetensors"
    if form == "bin":
        torch.save(tensors, path := tmp_path / "pytorch_model.bin")
    elif form == "fairseq":
        torch.save({"model": fairseq_names(tensors)}, path := tmp_path / "model.pt")
    else:
        if form == "one number in float64":
            tensors["lm_head.layer_norm.bias"] = tensors["lm_head.layer_norm.bias"].double()
        if form == "a wrong shape at the end":
            tensors["roberta.encoder.layer.1.output.dense.bias"] = torch.zeros(641)
        save_file(tensors, path)
    theirs.config.save_pretrained(tmp_path)
    del theirs, tensors
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    with pytest.raises(ModelError, match=r"\(641,\)") if form.startswith("a wrong") else contextlib.nullcontext():
        load_checkpoint(path, lambda line: None)
    assert path.stat().st_size > 50e6 and resident() - before < 1.5 * path.stat().st_size


CHANGES = {
    "a tensor of another type": lambda tensors, key: tensors[key].to(torch.int32),
    "a tensor of booleans": lambda tensors, key: tensors[key] > 0,
    "complex numbers": lambda tensors, key: tensors[key].to(torch.complex64),
    "eight bits": lambda tensors, key: tensors[key].to(torch.float8_e4m3fn),
    "no rows": lambda tensors, key: tensors[key][:0],
    "a dimension more": lambda tensors, key: tensors[key][None],
    "transposed": lambda tensors, key: tensors[key].T.contiguous()[..., 1:],
    "infinity": lambda tensors, key: tensors[key] / 0,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_tensor_changed(sound, tmp_path, change):
    tensors = load_file(sound / "model.safetensors")
    (tmp_path / "config.json").write_bytes((sound / "config.json").read_bytes())
    for key in sorted(tensors)[::4]:
        save_file({**tensors, key: CHANGES[change](tensors, key).contiguous()}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"model\.safetensors|config\.json"):
            load_checkpoint(tmp_path, lambda line: None)


def test_every_tensor_missing(sound, tmp_path):
    tensors = load_file(sound / "model.safetensors")
    (tmp_path / "config.json").write_bytes((sound / "config.json").read_bytes())
    for key in sorted(tensors):
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, tmp_path / "model.safetensors")
        if "token_type" in key:
            load_checkpoint(tmp_path, lambda line: None)
            continue
        with pytest.raises(ModelError):
            load_checkpoint(tmp_path, lambda line: None)


@pytest.mark.parametrize("value", [0, -1, 10**12, 2.5, "12", None, [], {}, True, float("inf")])
def test_every_number_of_config_json(sound, tmp_path, value):
    config = json.loads((sound / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((sound / "model.safetensors").read_bytes())
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
                "max_position_embeddings"):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ModelError):
            load_checkpoint(tmp_path, lambda line: None)


def test_the_command_ends_with_status_2(sound, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(hostile_pickle(b"", random.Random(0)))
    result = run_command("convert_weights.py", path, tmp_path / "out.safetensors")
    assert result.returncode == 2 and "was refused" in result.stderr and "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["x.bin"] and not os.path.exists(MARK)


SMALL_BUT_DEAR = {  # a few bytes that stand for much, as a dict's key or value
    "a tuple of itself twice, sixty times": b"}" + b")" + b"2\x86" * 60 + b"K\x01s.",
    "two million tuples in one another": b"}" + b")" + b"\x85" * 2_000_000 + b"K\x01s.",
    "two billion bytes": b"}X\x01\x00\x00\x00xcbuiltins\nbytearray\nJ\x00\x5e\xd0\x7a\x85Rs.",
}


@pytest.mark.parametrize("what", SMALL_BUT_DEAR)
@pytest.mark.parametrize("protocol", [2, 4])
def test_small_pickles_that_would_cost_much(tmp_path, what, protocol):
    """Written opcode by opcode: Python would not come to the end of making them."""
    (tmp_path / "x.bin").write_bytes(b"\x80" + bytes([protocol]) + SMALL_BUT_DEAR[what])
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident(), time.monotonic()
    with pytest.raises(ModelError, match=r"holds more than tensors \("):
        load_checkpoint(tmp_path / "x.bin")
    assert time.monotonic() - start < 5 and resident() - before < 50e6


def test_entries_that_are_one_region_many_times(sound, tmp_path):
    """An archive whose table names the same bytes again and again."""
    content = (sound / "new.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.bin", "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(100):
            twin = copy.copy(largest)
            twin.filename = f"archive/data/9{number}"
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(ModelError, match="states more bytes than it holds"):
        load_checkpoint(tmp_path / "x.bin")


def test_no_head_tensor_may_be_missing(tmp_path):
    heads = {"SequenceClassification": "classifier.out_proj.weight", "TokenClassification": "classifier.weight"}
    for kind, name in heads.items():
        theirs = huggingface_model(kind=f"CamembertFor{kind}").float()
        theirs.save_pretrained(tmp_path / kind)
        tensors = load_file(tmp_path / kind / "model.safetensors")
        for spoilt in (None, torch.zeros(()), torch.zeros(10**9, 0), torch.zeros(2, 7)):
            changed = {key: tensor for key, tensor in tensors.items() if key != name}
            if spoilt is not None:
                changed[name] = spoilt
            save_file(changed, tmp_path / kind / "model.safetensors")
            with pytest.raises(ModelError, match=f"lacks the tensor {name}, or its shape"):
                load_checkpoint(tmp_path / kind, lambda line: None)
