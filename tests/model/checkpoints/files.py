"""Checkpoints as transformers writes them, in every file format, and ways to change them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import Encoder, ModelError, SequenceClassifier, TokenClassifier, save_model
from model.checkpoints.export import export_huggingface
from model.checkpoints.load import load_checkpoint
from model.checkpoints.names import CLASSES
from tests.helpers import huggingface_model, padded_batch

CLASSIFIERS = (SequenceClassifier, TokenClassifier)
LABELS = ["neutre", "5 étoiles", "contradiction", "LABEL_0"]  # neither sorted nor numbered in order
POSITIONS = "roberta.embeddings.position_embeddings.weight"
TOKEN_TYPE = "roberta.embeddings.token_type_embeddings.weight"
MARK = Path("/tmp/distilcamembert-test-ran-code")


class RunsCode:
    """Leaves MARK behind when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


def load(path, **settings):
    """-> the model, what load_checkpoint reported"""
    reports = []
    return load_checkpoint(path, reports.append, **settings), reports


def assert_refused(path, match, **settings):
    """load_checkpoint raises a ModelError that names the path, and runs no code of the file."""
    with pytest.raises(ModelError, match=match) as caught:
        load(path, **settings)
    assert str(path) in str(caught.value) and not MARK.exists()


def rewrite(folder, change):
    """Changes the tensors of model.safetensors by `change`, in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder, remove=(), **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}))


def add(more):
    return lambda tensors: tensors.update(more)


def copy(key, new, change=torch.clone):
    """The tensor, changed, under a new name."""
    return lambda tensors: tensors.update({new: change(tensors[key])})


def edit(key, change):
    return copy(key, key, change)


def edit_all(change):
    return lambda tensors: tensors.update({key: change(tensor) for key, tensor in tensors.items()})


def remove(part):
    """Every tensor with this in its key."""
    return lambda tensors: [tensors.pop(key) for key in [*tensors] if part in key]


def rename(old, new):
    """In every key."""

    def change(tensors):
        for key in [*tensors]:
            tensors[key.replace(old, new, 1)] = tensors.pop(key)

    return change


def headed_model(kind, dtype=torch.float32, **settings):
    """A random transformers model for a class of this project; a classifier with LABELS."""
    if kind in CLASSIFIERS:
        settings |= {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    return huggingface_model(kind=CLASSES[kind.__name__], vocab_size=1005, **settings).to(dtype)


@torch.no_grad()
def their_outputs(theirs, input_ids, mask):
    """-> H_0, …, H_L and the head's output, in this project's shape"""
    outputs = theirs(input_ids, attention_mask=mask.long(), output_hidden_states=True)
    if "start_logits" in outputs:
        return outputs.hidden_states, torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    return outputs.hidden_states, outputs.get("logits", outputs.hidden_states[-1])


@torch.no_grad()
def assert_same_outputs(ours, theirs, tolerance=2e-5):
    """Of any model: every hidden state and the output, also at padding."""
    input_ids, mask = padded_batch((30, 1, 7), 1005)
    encoder = ours if isinstance(ours, Encoder) else ours.encoder
    states, output = their_outputs(theirs, input_ids, mask)
    for one, other in zip(encoder.hidden_states(input_ids, mask), states, strict=True):
        assert (one - other).abs().max() < tolerance
    assert (ours(input_ids, mask) - output).abs().max() < tolerance


def as_folder(model, place):
    model.save_pretrained(place)
    return place


def as_file(model, place):
    return as_folder(model, place) / "model.safetensors"


def as_shards(model, place):
    model.save_pretrained(place, max_shard_size="40KB")
    assert len(list(place.glob("model-*.safetensors"))) > 2
    return place


def as_index(model, place):
    return as_shards(model, place) / "model.safetensors.index.json"


def as_bin(model, place):
    as_file(model, place).unlink()
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    return place / "pytorch_model.bin"


def as_bin_shards(model, place):
    """As transformers 4 wrote them: the two names of a tied tensor need not be in one file."""
    as_file(model, place).unlink()
    state, index = model.state_dict(), {}
    for number in range(3):
        name, keys = f"pytorch_model-0000{number + 1}-of-00003.bin", [*state][number::3]
        torch.save({key: state[key] for key in keys}, place / name)
        index |= dict.fromkeys(keys, name)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    return place


def as_native(model, place):
    save_model(load_checkpoint(as_folder(model, place / "theirs")), place / "ours.safetensors")
    return place / "ours.safetensors"


def as_export(model, place):
    export_huggingface(load_checkpoint(as_folder(model, place / "theirs")), place / "export")
    return place / "export"


FORMS = (as_folder, as_file, as_shards, as_index, as_bin, as_bin_shards, as_native, as_export)
