"""Exported ONNX graphs: ONNX Runtime computes what transformers and this project compute, for any batch and length."""

import json
import os
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from data import Tokenizer, demo
from model import Encoder, MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier, save_model
from model.checkpoints import onnx
from tests.helpers import convert, padded_batch, run_command
from tests.model.checkpoints.files import LABELS, headed_model, their_outputs

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
TOKENIZER = Tokenizer(demo.FOLDER)
# what optimum's ORTModelFor… of the class reads: optimum.onnxruntime.modeling, self.output_names
OUTPUTS = {
    Encoder: ["last_hidden_state"],
    MaskedLM: ["logits"],
    SequenceClassifier: ["logits"],
    TokenClassifier: ["logits"],
    QuestionAnswerer: ["start_logits", "end_logits"],
}


@pytest.fixture(scope="module", params=OUTPUTS, ids=lambda kind: kind.__name__)
def exported(request, tmp_path_factory):
    """A transformers model, the same here, and the folder that the command wrote."""
    theirs, place = headed_model(request.param).float(), tmp_path_factory.mktemp(request.param.__name__)
    ours, folder = convert(theirs), place / "onnx"
    save_model(ours, place / "in.safetensors", tokenizer=TOKENIZER)
    result = run_command("convert_weights.py", place / "in.safetensors", folder, "--to", "onnx")
    assert result.returncode == 0 and not result.stderr and "with its tokenizer" in result.stdout, result.stderr
    return theirs, ours, folder


@torch.no_grad()
def test_outputs_on_padded_batches(exported):
    theirs, ours, folder = exported
    session = runtime.InferenceSession(folder / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [value.name for value in session.get_outputs()] == OUTPUTS[type(ours)]
    assert all(value.shape[:2] == ["batch", "tokens"] for value in session.get_inputs())
    for lengths in ((1,), (9,), (30, 1, 7), (512, 40), (4,) * 5):
        input_ids, mask = padded_batch(lengths, 1005)
        if len(lengths) == 3:
            mask[0, 20:] = False  # tokens that only the mask leaves out
        outputs = session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": mask.long().numpy()})
        actual = torch.from_numpy(np.stack(outputs, axis=-1) if len(outputs) == 2 else outputs[0])
        for expected in (ours(input_ids, mask), their_outputs(theirs, input_ids, mask)[1]):
            assert actual.shape == expected.shape and (actual - expected).abs().max() < 1e-4


def test_the_tokenizer_and_the_configuration(exported, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    theirs, ours, folder = exported
    files = ["config.json", "model.onnx", "sentencepiece.bpe.model", "tokenizer_config.json"]
    assert sorted(os.listdir(folder)) == files
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.architectures == [type(theirs).__name__]
    assert (config.vocab_size, config.max_position_embeddings, config.pad_token_id) == (1005, 514, 1)
    if type(ours) in (SequenceClassifier, TokenClassifier):
        assert config.id2label == dict(enumerate(LABELS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Le film est <mask>.")["input_ids"] == TOKENIZER.encode("Le film est <mask>.")
    assert tokenizer.model_max_length == 512


def test_weights_in_half_precision_and_a_failure_that_leaves_nothing(tmp_path, monkeypatch):
    model = convert(headed_model(SequenceClassifier))
    save_model(model.to(torch.bfloat16), tmp_path / "in.safetensors", tokenizer=TOKENIZER)
    written = []
    monkeypatch.setattr(onnx, "write_onnx", lambda model, path: written.append(model.dense.weight.dtype))
    command = ("convert_weights.py", tmp_path / "in.safetensors", tmp_path / "onnx", "--to", "onnx")
    assert run_command(*command).returncode == 0 and written == [torch.float32]
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["dtype"] == "float32"
    shutil.rmtree(tmp_path / "onnx")
    monkeypatch.setattr(onnx, "write_config", Mock(side_effect=OSError(28, "No space left on device")))
    result = run_command(*command)
    assert result.returncode == 2 and "onnx cannot be written: No space left on device" in result.stderr
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_without_the_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = run_command("convert_weights.py", "no-such-file", tmp_path / "onnx", "--to", "onnx")
    assert result.returncode == 2 and "pip install onnx onnxscript" in result.stderr
    assert not os.listdir(tmp_path)
