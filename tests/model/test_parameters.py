"""Equation (9) against the parameters of real encoders."""

import random
import subprocess
import sys

import pytest
import torch

from model import Encoder, EncoderConfig, MaskedLM, ModelError, SequenceClassifier, save_model
from model.config import count_parameters
from model.parameters import parameter_report
from tests.helpers import REPOSITORY, run_command


def test_the_figures_of_table_1():
    assert count_parameters(EncoderConfig.camembert()) == 110_030_592
    assert count_parameters(EncoderConfig.distilcamembert()) == 67_503_360
    assert count_parameters(EncoderConfig(24, 1024, 16, 4096)) == 335_610_880  # camembert-large


def test_equation_9_is_the_number_of_an_encoders_parameters():
    draw, configs = random.Random(0).randint, [EncoderConfig.camembert(), EncoderConfig.distilcamembert()]
    for _ in range(50):
        heads, sizes = draw(1, 12), (draw(1, 300), draw(2, 5000), draw(3, 600))
        configs.append(EncoderConfig(draw(1, 9), heads * draw(1, 40), heads, *sizes))
    for config in configs:
        with torch.device("meta"):
            encoder = Encoder(config)
        assert sum(parameter.numel() for parameter in encoder.parameters()) == count_parameters(config), config


def test_transformers_has_one_token_type_row_more():
    from transformers import CamembertConfig, CamembertModel

    settings = CamembertConfig(vocab_size=32005, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1)
    with torch.device("meta"):
        theirs = CamembertModel(settings, add_pooling_layer=False)
    assert theirs.num_parameters() - 768 == count_parameters(EncoderConfig.camembert())


def test_the_report_has_every_part():
    with torch.device("meta"):
        model = MaskedLM(EncoderConfig.distilcamembert())
        classifier = SequenceClassifier(EncoderConfig(2, 48, 4, 80, 211), 3)
    text = parameter_report(model)
    for figure in ("24,579,840", "394,752", "7,087,872", "67,503,360", "32,005", "590,592", "68,127,493", "tied"):
        assert figure in text
    assert text.count("7,087,872") == 2 * 6  # one line per layer: by the equation, and counted
    assert "SequenceClassifier head, output" in parameter_report(classifier)
    assert "not in (9)" in parameter_report(classifier) and "not in (9)" not in parameter_report(model.encoder)


def test_an_encoder_that_differs_from_equation_9_is_an_error():
    model = MaskedLM(EncoderConfig(2, 48, 4, 80, 211))
    model.encoder.layers[1].feed_forward.feed.bias = None
    with pytest.raises(ModelError, match="does not agree with equation \\(9\\): layer 2"):
        parameter_report(model)


def test_the_command(tmp_path, monkeypatch):
    command = [sys.executable, "-m", "model.parameters"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr  # not even a warning of runpy
    assert "110,030,592" in result.stdout and "67,503,360" in result.stdout
    save_model(MaskedLM(EncoderConfig(2, 48, 4, 80, 211)), tmp_path / "model.safetensors")
    monkeypatch.delitem(sys.modules, "model.parameters")
    result = run_command("-m model.parameters", tmp_path / "model.safetensors")
    assert result.returncode == 0 and "L = 2, d_h = 48" in result.stdout
    result = run_command("-m model.parameters", tmp_path / "nothing.safetensors")
    assert result.returncode == 2 and "There is no file" in result.stderr and "Traceback" not in result.stderr
