"""Hundreds of damaged and hostile checkpoints: each is an error or, if only weights changed, a model."""

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
from tests.model.checkpoints.fairseq_files import to_fairseq
from tests.model.checkpoints.files import MARK, RunsCode


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A small checkpoint as .safetensors, .bin (new and old format) and model.pt, with a config.json."""
    place = tmp_path_factory.mktemp("intact")
    theirs = huggingface_model(vocab_size=101, max_position_embeddings=40).float()
    theirs.save_pretrained(place)
    state = theirs.state_dict()
    torch.save(state, place / "new.bin")
    torch.save(state, place / "old.bin", _use_new_zipfile_serialization=False)
    arguments = argparse.Namespace(encoder_attention_heads=4)
    torch.save({"model": to_fairseq(state), "args": arguments}, place / "model.pt")
    for name in SOURCES:
        load_checkpoint(place / name, lambda line: None)  # each can be read
    return place


def truncate(content, rng):
    return content[: rng.randrange(len(content))]


def flip_bits(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 8, 64])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def flip_early_bits(content, rng):
    """In headers and pickles, where flips do most damage."""
    return flip_bits(content[:2000], rng) + content[2000:]


def splice(content, rng):
    start, stop = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:start] + content[stop:]


def repeat(content, rng):
    start, stop = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:stop] + content[start:]


def swap_numbers(content, rng):
    """Absurd shapes, offsets and lengths in a header that stays readable."""
    absurd = rng.choice([b"0", b"99999999999999", b"-1", b"1e9", b"null"])
    places = [match.span() for match in re.finditer(rb"\d+", content[:4000])]
    start, stop = rng.choice(places)
    return content[:start] + absurd + content[stop:]


def wrong_header_size(content, rng):
    return struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63])) + content[8:]


def noise(content, rng):
    return rng.randbytes(rng.randrange(1, 5000))


def hostile_pickle(content, rng):
    return pickle.dumps({"roberta.embeddings.word_embeddings.weight": RunsCode()}, protocol=rng.choice([0, 2, 4]))


FLIPS_AND_CUTS = (flip_bits, flip_early_bits, splice, repeat)  # which a file can survive
DAMAGES = (*FLIPS_AND_CUTS, truncate, swap_numbers, wrong_header_size, noise, hostile_pickle)
SOURCES = ("model.safetensors", "new.bin", "old.bin", "model.pt")


def peak_memory() -> int:
    """Bytes, since the last write to clear_refs."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files(intact, tmp_path, damage):
    """27 files for each kind of damage: none runs code, takes long or needs much memory."""
    refused = 0
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    for seed in range(27):
        rng = random.Random(f"{damage.__name__} {seed}")
        name = SOURCES[seed % len(SOURCES)]
        path = tmp_path / f"{seed}{Path(name).suffix}"
        path.write_bytes(damage((intact / name).read_bytes(), rng))
        (tmp_path / "config.json").write_bytes((intact / "config.json").read_bytes())
        start = time.monotonic()
        try:
            model = load_checkpoint(path, lambda line: None)
        except ModelError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 1000
        else:
            assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        assert time.monotonic() - start < 10
        assert not MARK.exists()
    assert refused >= (5 if damage in FLIPS_AND_CUTS else 20)
    assert peak_memory() - before < 150e6


@pytest.mark.parametrize("form", ["safetensors", "bin", "fairseq", "one number in float64", "a wrong shape at the end"])
def test_peak_memory_is_below_1_5_times_the_file(tmp_path, form):
    theirs = huggingface_model(vocab_size=20_000, hidden_size=640, intermediate_size=640).float()
    tensors = {key: tensor for key, tensor in theirs.state_dict().items() if "decoder" not in key}
    path = tmp_path / "model.safetensors"
    if form == "bin":
        torch.save(tensors, path := tmp_path / "pytorch_model.bin")
    elif form == "fairseq":
        torch.save({"model": to_fairseq(tensors)}, path := tmp_path / "model.pt")
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
    before = peak_memory()
    with pytest.raises(ModelError, match=r"\(641,\)") if form.startswith("a wrong") else contextlib.nullcontext():
        load_checkpoint(path, lambda line: None)
    assert path.stat().st_size > 50e6 and peak_memory() - before < 1.5 * path.stat().st_size


CHANGES = {
    "a tensor of another type": lambda tensors, key: tensors[key].to(torch.int32),
    "a tensor of booleans": lambda tensors, key: tensors[key] > 0,
    "complex numbers": lambda tensors, key: tensors[key].to(torch.complex64),
    "float8": lambda tensors, key: tensors[key].to(torch.float8_e4m3fn),
    "no rows": lambda tensors, key: tensors[key][:0],
    "one more dimension": lambda tensors, key: tensors[key][None],
    "transposed": lambda tensors, key: tensors[key].T.contiguous()[..., 1:],
    "infinity": lambda tensors, key: tensors[key] / 0,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_to_any_tensor_is_an_error(intact, tmp_path, change):
    tensors = load_file(intact / "model.safetensors")
    (tmp_path / "config.json").write_bytes((intact / "config.json").read_bytes())
    for key in sorted(tensors)[::4]:
        save_file({**tensors, key: CHANGES[change](tensors, key).contiguous()}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"model\.safetensors|config\.json"):
            load_checkpoint(tmp_path, lambda line: None)


def test_any_missing_tensor_is_an_error(intact, tmp_path):
    tensors = load_file(intact / "model.safetensors")
    (tmp_path / "config.json").write_bytes((intact / "config.json").read_bytes())
    for key in sorted(tensors):
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, tmp_path / "model.safetensors")
        if "token_type" in key:
            load_checkpoint(tmp_path, lambda line: None)
            continue
        with pytest.raises(ModelError):
            load_checkpoint(tmp_path, lambda line: None)


@pytest.mark.parametrize("value", [0, -1, 10**12, 2.5, "12", None, [], {}, True, float("inf")])
def test_a_wrong_size_in_config_json_is_an_error(intact, tmp_path, value):
    config = json.loads((intact / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((intact / "model.safetensors").read_bytes())
    widths = ("hidden_size", "num_attention_heads", "intermediate_size")
    for key in (*widths, "num_hidden_layers", "vocab_size", "max_position_embeddings"):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ModelError):
            load_checkpoint(tmp_path, lambda line: None)


def test_a_hostile_file_ends_the_command_with_status_2(intact, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(hostile_pickle(b"", random.Random(0)))
    result = run_command("convert_weights.py", path, tmp_path / "out.safetensors")
    assert result.returncode == 2 and "was refused" in result.stderr and "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["x.bin"] and not MARK.exists()


EXPENSIVE = {  # a few bytes, as the key or value of a dict, that would take much time or memory
    "a tuple of itself twice, sixty times": b"}" + b")" + b"2\x86" * 60 + b"K\x01s.",
    "two million nested tuples": b"}" + b")" + b"\x85" * 2_000_000 + b"K\x01s.",
    "two billion bytes": b"}X\x01\x00\x00\x00xcbuiltins\nbytearray\nJ\x00\x5e\xd0\x7a\x85Rs.",
}


@pytest.mark.parametrize("what", EXPENSIVE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_expensive_pickles_are_refused(tmp_path, what, protocol):
    """Written opcode by opcode: Python itself cannot make such objects."""
    (tmp_path / "x.bin").write_bytes(b"\x80" + bytes([protocol]) + EXPENSIVE[what])
    Path("/proc/self/clear_refs").write_text("5")
    before, start = peak_memory(), time.monotonic()
    with pytest.raises(ModelError, match=r"holds more than tensors \("):
        load_checkpoint(tmp_path / "x.bin")
    assert time.monotonic() - start < 5 and peak_memory() - before < 50e6


def test_an_archive_with_the_same_bytes_many_times_is_refused(intact, tmp_path):
    content = (intact / "new.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.bin", "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(100):
            twin = copy.copy(largest)
            twin.filename = f"archive/data/9{number}"
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(ModelError, match="declares more bytes than it holds"):
        load_checkpoint(tmp_path / "x.bin")


def test_a_missing_or_wrong_head_is_an_error(tmp_path):
    heads = {"SequenceClassification": "classifier.out_proj.weight", "TokenClassification": "classifier.weight"}
    for kind, name in heads.items():
        theirs = huggingface_model(kind=f"CamembertFor{kind}").float()
        theirs.save_pretrained(tmp_path / kind)
        tensors = load_file(tmp_path / kind / "model.safetensors")
        for wrong in (None, torch.zeros(()), torch.zeros(10**9, 0), torch.zeros(2, 7)):
            changed = {key: tensor for key, tensor in tensors.items() if key != name}
            if wrong is not None:
                changed[name] = wrong
            save_file(changed, tmp_path / kind / "model.safetensors")
            with pytest.raises(ModelError, match=f"lacks the tensor {name}, or its shape"):
                load_checkpoint(tmp_path / kind, lambda line: None)
