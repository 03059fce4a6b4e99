"""Hundreds of damaged and hostile checkpoints: each is an error or, if only weights changed, a model."""

import argparse
import contextlib
import copy
import gc
import math
import pickle
import random
import re
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import ModelError
from tests.helpers import huggingface_model
from tests.model.checkpoints.fairseq_files import to_fairseq
from tests.model.checkpoints.files import MARK, RunsCode, add, assert_refused, load, remove, rewrite, set_config

SOURCES = ("model.safetensors", "new.bin", "old.bin", "model.pt")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A small checkpoint as .safetensors, .bin (new and old format) and model.pt, with a config.json."""
    theirs = huggingface_model(vocab_size=101, max_position_embeddings=40).float()
    place, state = tmp_path_factory.mktemp("intact"), theirs.state_dict()
    theirs.save_pretrained(place)
    torch.save(state, place / "new.bin")
    torch.save(state, place / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"model": to_fairseq(state), "args": argparse.Namespace(encoder_attention_heads=4)}, place / "model.pt")
    for name in SOURCES:
        load(place / name)  # each can be read
    return place


@pytest.fixture
def folder(intact, tmp_path):
    """A copy of model.safetensors and config.json, to change."""
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(intact / name, tmp_path / name)
    return tmp_path


def flip_bits(content, rng, end=None):
    content = bytearray(content)
    for _ in range(rng.choice([1, 8, 64])):
        content[rng.randrange(end or len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def splice(content, rng, repeat=False):
    """Leaves out a part, or repeats it."""
    start, stop = sorted((rng.randrange(len(content)) for _ in range(2)), reverse=repeat)
    return content[:start] + content[stop:]


def swap_numbers(content, rng):
    start, stop = rng.choice([match.span() for match in re.finditer(rb"\d+", content[:4000])])
    return content[:start] + rng.choice([b"0", b"99999999999999", b"-1", b"1e9", b"null"]) + content[stop:]


HEADER_SIZES = (0, 1, 2**20, 2**40, 2**63)
WORDS = "roberta.embeddings.word_embeddings.weight"
FLIPS_AND_CUTS = {  # which a file can survive
    "flip_bits": flip_bits,
    "flip_early_bits": lambda content, rng: flip_bits(content, rng, 2000),  # in headers and pickles
    "splice": splice,
    "repeat": lambda content, rng: splice(content, rng, repeat=True),
}
DAMAGES = {
    **FLIPS_AND_CUTS,
    "truncate": lambda content, rng: content[: rng.randrange(len(content))],
    "swap_numbers": swap_numbers,  # absurd shapes, offsets and lengths in a header that stays readable
    "wrong_header_size": lambda content, rng: struct.pack("<Q", rng.choice(HEADER_SIZES)) + content[8:],
    "noise": lambda content, rng: rng.randbytes(rng.randrange(1, 5000)),
    "hostile_pickle": lambda content, rng: pickle.dumps({WORDS: RunsCode()}, protocol=rng.choice([0, 2, 4])),
}


@contextlib.contextmanager
def limits(more_bytes, seconds=math.inf):
    """The additional memory and the time that are allowed."""

    def peak_memory():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = peak_memory(), time.monotonic()
    yield
    assert time.monotonic() - start < seconds and peak_memory() - before < more_bytes


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(intact, folder, damage):
    """27 files for each kind of damage: none runs code, takes long or needs much memory."""
    refused = 0
    with limits(150e6):
        for seed in range(27):
            name = SOURCES[seed % len(SOURCES)]
            path = folder / f"{seed}{Path(name).suffix}"
            path.write_bytes(DAMAGES[damage]((intact / name).read_bytes(), random.Random(f"{damage} {seed}")))
            start = time.monotonic()
            try:
                model, _ = load(path)
            except ModelError as error:
                refused += 1
                assert str(path) in str(error) and len(str(error)) < 1000
            else:
                assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
            assert time.monotonic() - start < 10 and not MARK.exists()
    assert refused >= (5 if damage in FLIPS_AND_CUTS else 20)


@pytest.mark.parametrize("form", ["safetensors", "bin", "fairseq", "one number in float64", "a wrong shape at the end"])
def test_peak_memory_is_below_1_5_times_the_file(tmp_path, form):
    theirs = huggingface_model(vocab_size=20_000, hidden_size=640, intermediate_size=640).float()
    tensors = {key: tensor for key, tensor in theirs.state_dict().items() if "decoder" not in key}
    path = tmp_path / {"bin": "pytorch_model.bin", "fairseq": "model.pt"}.get(form, "model.safetensors")
    if form == "one number in float64":
        tensors["lm_head.layer_norm.bias"] = tensors["lm_head.layer_norm.bias"].double()
    if form == "a wrong shape at the end":
        tensors["roberta.encoder.layer.1.output.dense.bias"] = torch.zeros(641)
    state = {"model": to_fairseq(tensors)} if form == "fairseq" else tensors
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    theirs.config.save_pretrained(tmp_path)
    del theirs, tensors, state
    gc.collect()
    assert path.stat().st_size > 50e6
    error = pytest.raises(ModelError, match=r"\(641,\)") if form.startswith("a wrong") else contextlib.nullcontext()
    with limits(1.5 * path.stat().st_size), error:
        load(path)


CHANGES = {
    "a tensor of another type": lambda tensor: tensor.to(torch.int32),
    "a tensor of booleans": lambda tensor: tensor > 0,
    "complex numbers": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "no rows": lambda tensor: tensor[:0],
    "one more dimension": lambda tensor: tensor[None],
    "transposed": lambda tensor: tensor.permute(*reversed(range(tensor.ndim))).contiguous()[..., 1:],
    "infinity": lambda tensor: tensor / 0,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_to_any_tensor_is_an_error(folder, change):
    tensors = load_file(folder / "model.safetensors")
    for key in sorted(tensors)[::4]:
        save_file({**tensors, key: CHANGES[change](tensors[key]).contiguous()}, folder / "model.safetensors")
        with pytest.raises(ModelError, match=r"model\.safetensors|config\.json"):
            load(folder)


def test_any_missing_tensor_is_an_error(folder):
    tensors = load_file(folder / "model.safetensors")
    for key in sorted(tensors):
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, folder / "model.safetensors")
        with contextlib.nullcontext() if "token_type" in key else pytest.raises(ModelError):
            load(folder)


SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size")


@pytest.mark.parametrize("value", [0, -1, 10**12, 2.5, "12", None, [], {}, True, float("inf")])
@pytest.mark.parametrize("key", [*SIZES, "max_position_embeddings"])
def test_a_wrong_size_in_config_json_is_an_error(folder, key, value):
    set_config(folder, **{key: value})
    assert_refused(folder, r"model\.safetensors|config\.json")


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
    with limits(50e6, seconds=5):
        assert_refused(tmp_path / "x.bin", r"holds more than tensors \(")


def test_an_archive_with_the_same_bytes_many_times_is_refused(intact, tmp_path):
    shutil.copyfile(intact / "new.bin", tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin", "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(100):
            twin = copy.copy(largest)
            twin.filename = f"archive/data/9{number}"
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    assert_refused(tmp_path / "x.bin", "declares more bytes than it holds")


HEADS = {"SequenceClassification": "classifier.out_proj.weight", "TokenClassification": "classifier.weight"}


@pytest.mark.parametrize(("kind", "name"), HEADS.items())
def test_a_missing_or_wrong_head_is_an_error(tmp_path, kind, name):
    huggingface_model(kind=f"CamembertFor{kind}").float().save_pretrained(tmp_path)
    rewrite(tmp_path, remove(name))
    assert_refused(tmp_path, f"lacks the tensor {name}, or its shape")
    for wrong in (torch.zeros(()), torch.zeros(10**9, 0), torch.zeros(2, 7)):
        rewrite(tmp_path, add({name: wrong}))
        assert_refused(tmp_path, f"lacks the tensor {name}, or its shape")
