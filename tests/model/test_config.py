"""Table 1, and configurations that cannot exist."""

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
    ("wrong", "sentence"),
    [
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"hidden_size": 769}, "hidden_size 769 cannot be shared out among 12 heads"),
        ({"hidden_size": 768.0}, "hidden_size must be a whole number"),
        ({"num_layers": True}, "num_layers must be a whole number"),
        ({"vocab_size": None}, "vocab_size must be a whole number"),
        ({"pad_id": -1}, "pad_id is -1; it must be at least 0"),
        ({"pad_id": 32005}, "pad_id 32005 lies outside the vocabulary"),
        ({"max_positions": 2}, "leaves no position"),
        ({"activation": "gelu_new"}, "activation 'gelu_new' is unknown"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'"),
    ],
)
def test_an_impossible_configuration_is_a_sentence(wrong, sentence):
    with pytest.raises(ModelError, match=sentence):
        EncoderConfig(**wrong)
