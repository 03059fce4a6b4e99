"""The heads of section 4, against transformers' own on the same weights."""

import pytest
import torch
from transformers import CamembertConfig, CamembertForQuestionAnswering, CamembertForSequenceClassification
from transformers import CamembertForTokenClassification as TheirTokenClassifier

from model import EncoderConfig, MaskedLM, ModelError, QuestionAnswerer, SequenceClassifier, TokenClassifier
from model.checkpoints.names import from_huggingface_key
from tests.helpers import padded_batch

CONFIG = EncoderConfig(2, 48, 4, 80, 211)
THEIR_SIZES = dict(
    num_hidden_layers=2, hidden_size=48, num_attention_heads=4, intermediate_size=80, vocab_size=211,
    max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
)  # fmt: skip
HEADS = [
    (CamembertForSequenceClassification, lambda: SequenceClassifier(CONFIG, 5),
     {"dense": "classifier.dense", "output": "classifier.out_proj"}, (3, 5)),
    (TheirTokenClassifier, lambda: TokenClassifier(CONFIG, 5), {"output": "classifier"}, (3, 9, 5)),
    (CamembertForQuestionAnswering, lambda: QuestionAnswerer(CONFIG), {"output": "qa_outputs"}, (3, 9, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours", "names", "shape"), HEADS, ids=["sequence", "token", "question"])
@torch.no_grad()
def test_the_head_agrees_with_transformers(theirs, ours, names, shape):
    torch.manual_seed(0)
    theirs = theirs(CamembertConfig(**THEIR_SIZES, num_labels=shape[-1])).double().eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    ours = ours().double().eval()
    state = theirs.state_dict()
    for our_name in ours.state_dict():
        part, kind = our_name.rsplit(".", 1)
        if part in names:
            ours.state_dict()[our_name].copy_(state[f"{names[part]}.{kind}"])
    for name, tensor in theirs.roberta.state_dict().items():
        if "token_type" not in name:
            ours.state_dict()[from_huggingface_key(name, "MaskedLM")].copy_(tensor)
    ours.encoder.embeddings.position.weight.copy_(
        state["roberta.embeddings.position_embeddings.weight"]
        + state["roberta.embeddings.token_type_embeddings.weight"]
    )
    input_ids, mask = padded_batch((9, 4, 1), 211)
    expected = theirs(input_ids, attention_mask=mask.long())
    expected = (
        torch.stack([expected.start_logits, expected.end_logits], dim=-1)
        if isinstance(theirs, CamembertForQuestionAnswering)
        else expected.logits
    )
    assert expected.shape == shape
    assert (ours(input_ids, mask) - expected).abs().max() < 1e-10


def test_the_decoder_is_the_word_embeddings():
    model = MaskedLM(CONFIG)
    assert model.decoder is model.encoder.embeddings.word.weight
    assert "decoder.weight" not in model.state_dict()
    hidden = torch.randn(3, 48)
    assert torch.equal(model.head(hidden), model.transform(hidden) @ model.decoder.T + model.bias)


def test_label_names():
    assert SequenceClassifier(CONFIG, 2).labels == ("LABEL_0", "LABEL_1")
    assert TokenClassifier(CONFIG, 2, ["O", "PER"]).labels == ("O", "PER")
    with pytest.raises(ModelError, match="at least 1"):
        SequenceClassifier(CONFIG, 0)
    with pytest.raises(ModelError, match="2 different label names"):
        TokenClassifier(CONFIG, 2, ["O", "O"])
