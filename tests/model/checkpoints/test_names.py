"""The key tables against the names of transformers' own models."""

import pytest
import torch

from model import Encoder, EncoderConfig
from model.checkpoints.names import CLASSES, from_huggingface_key, to_huggingface_key
from model.checkpoints.native import KINDS
from tests.helpers import huggingface_model
from tests.model.checkpoints.files import CLASSIFIERS, TOKEN_TYPE


@pytest.mark.parametrize("kind", KINDS.values())
def test_the_key_table_is_one_to_one(kind):
    theirs = huggingface_model(kind=CLASSES[kind.__name__], num_labels=3 if kind in CLASSIFIERS else 2)
    with torch.device("meta"):
        ours = kind(EncoderConfig(2, 48, 4, 80, 211), *([3] if kind in CLASSIFIERS else []))
    exported = {key: to_huggingface_key(key, kind.__name__) for key in ours.state_dict()}
    assert len(set(exported.values())) == len(ours.state_dict())
    token_type = TOKEN_TYPE.removeprefix("roberta.") if kind is Encoder else TOKEN_TYPE
    aliases = {"lm_head.decoder.weight", "lm_head.decoder.bias", token_type, "pooler.dense.weight", "pooler.dense.bias"}
    assert set(exported.values()) == set(theirs.state_dict()) - aliases
    for key, theirs_key in exported.items():
        assert from_huggingface_key(theirs_key.removeprefix("roberta."), kind.__name__) == key
