"""Damaged checkpoints: every change of a file is found, and the one before is read instead."""

import hashlib
import itertools
import json
import random
import shutil

import pytest

from data import DataError
from model.checkpoints.native import sha256
from model.training.run_state import newest
from tests.model.training.runs import FILES, falls_back, intact, step_folder


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(out, written, name):
    """In every third byte of state.json; in the header of each tensor file, and at random places of its numbers."""
    path, chance, found = step_folder(out, 2) / name, random.Random(0), 0
    content = path.read_bytes()
    places = range(0, len(content), 3)
    if name != "state.json":
        header = 8 + int.from_bytes(content[:8], "little")
        inside = chance.sample(range(16, header), 60) + chance.sample(range(header, len(content)), 60)
        places = [*range(16), *inside, header - 1, header, len(content) - 1]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found += falls_back(out, written[1], f"byte {place}")
    # In JSON, 1e-5 equals 1E-5, and the 17th digit of a number may not matter.
    assert found == len(places) if name != "state.json" else found >= 0.95 * len(places)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_extended_zeroed_or_missing_file_is_found(out, written, name):
    path = step_folder(out, 2) / name
    content = path.read_bytes()
    sizes = (0, 1, 7, 8, 9, len(content) // 2, len(content) - 2)
    for damaged in (*(content[:size] for size in sizes), content + b"\0", bytes(len(content))):
        path.write_bytes(damaged)
        assert falls_back(out, written[1], f"{len(damaged)} bytes")
    path.write_bytes(content)
    assert not falls_back(out, written[1])
    path.unlink()
    assert falls_back(out, written[1])
    path.mkdir()
    assert falls_back(out, written[1])


@pytest.mark.parametrize("names", [*itertools.combinations(FILES, 1), *itertools.combinations(FILES, 2), FILES])
def test_files_swapped_between_two_checkpoints_are_found(out, names):
    for name in names:
        one, other = step_folder(out, 1) / name, step_folder(out, 2) / name
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    messages = []
    with pytest.raises(DataError) as caught:
        newest(out, messages.append)
    assert "step-000000002 is damaged (" in str(caught.value) and "step-000000001 is damaged (" in str(caught.value)
    assert "No other checkpoint is left" in str(caught.value) and not messages


def test_a_renamed_checkpoint_is_found(out, written):
    step_folder(out, 2).rename(step_folder(out, 3))
    messages = []
    assert newest(out, messages.append).values["step"] == 1 and "step-000000003 is damaged" in messages[0]
    step_folder(out, 3).rename(step_folder(out, 2))
    assert not falls_back(out, written[1])


def test_an_empty_folder_is_damaged_and_a_file_of_that_name_is_ignored(out, written):
    shutil.rmtree(step_folder(out, 2))
    step_folder(out, 2).mkdir()
    assert falls_back(out, written[1])
    step_folder(out, 2).rmdir()
    step_folder(out, 2).write_text("")
    assert intact(out).values["step"] == 1


def with_hash(values):
    """A state.json whose own hash matches."""
    own = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": own, "state": values}).encode()


NOT_A_STATE = [b"", b"[]", b"null", b"1", b'"state"', b"{}", b"{", b"\xff\xfe", b"1" * 5000]
NOT_A_STATE += [b"[" * 100_000, b'{"a":' * 100_000, b'{"state": {}, "sha256": 5}', b'{"state": [], "sha256": ""}']
NOT_A_STATE += [b'{"state": null, "sha256": ""}', *map(with_hash, ({}, [], "step", {"step": 2}))]
NOT_A_STATE += [with_hash({"step": 2, "hashes": hashes}) for hashes in ([], {}, None)]
NOT_A_STATE += [with_hash({"step": "2", "hashes": {}})]
NOT_A_STATE += [with_hash({"step": 2, "hashes": {"../step-000000001/state.json": "0"}})]
NOT_A_STATE += [with_hash({"step": 2, "hashes": {"student.safetensors": 1, "state.safetensors": 2}})]


@pytest.mark.parametrize("content", NOT_A_STATE, ids=lambda content: repr(content[:40]))
def test_a_state_json_with_other_content_is_damaged(out, written, content):
    (step_folder(out, 2) / "state.json").write_bytes(content)
    assert falls_back(out, written[1])


def test_another_file_with_a_matching_hash_is_damaged(out, written):
    values = {name: value for name, value in written[1][2].values.items() if name != "hashes"}
    (step_folder(out, 2) / "state.safetensors").write_bytes(b"\x80\x04N.")  # a pickle of None
    hashes = {name: sha256(step_folder(out, 2) / name) for name in FILES[:2]}
    (step_folder(out, 2) / "state.json").write_bytes(with_hash({**values, "hashes": hashes}))
    messages = []
    assert newest(out, messages.append).values["step"] == 1 and "not a complete .safetensors" in messages[0]
