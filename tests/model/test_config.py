"""Table 1, and configurations that are refused."""

import pytest

from model import EncoderConfig, ModelError


def test_the_two_rows_of_table_1():
    teacher, student = EncoderConfig.camembert(), EncoderConfig.distilcamembert()
    assert (teacher.num_layers, student.num_layers) == (12, 6)
    for config in (teacher, student):
        assert (config.hidden_size, config.num_heads, config.intermediate_size) == (768, 12, 3072)
        assert (config.vocab_size, config.max_positions, config.pad_id) == (32005, 514, 1)
        assert (config.activation, config.layer_norm_eps, config.dropout) == ("gelu", 1e-5, 0.1)
        assert config.max_tokens == 512


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"hidden_size": 769}, "hidden_size 769 must be divisible by num_heads 12"),
        ({"hidden_size": 768.0}, "hidden_size must be an integer, not 768.0"),
        ({"num_layers": True}, "num_layers must be an integer"),
        ({"vocab_size": None}, "vocab_size must be an integer"),
        ({"pad_id": -1}, "pad_id is -1; it must be at least 0"),
        ({"pad_id": 32005}, "pad_id 32005 lies outside the vocabulary of 32005 tokens"),
        ({"max_positions": 2}, "leaves no position"),
        ({"activation": "gelu_new"}, "activation must be .* not 'gelu_new'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'"),
    ],
)
def test_an_invalid_configuration_is_refused(wrong, message):
    with pytest.raises(ModelError, match=message):
        EncoderConfig(**wrong)
