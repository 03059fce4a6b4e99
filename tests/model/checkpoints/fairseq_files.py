"""fairseq's files, written by its naming, and its forward pass, written by its conventions."""

import argparse

import torch
import torch.nn.functional as F

from tests.helpers import huggingface_model
from tests.model.checkpoints.files import TOKEN_TYPE


def arguments(**changes):
    """Training arguments: those that matter to the model, and some that do not."""
    sizes = dict(encoder_layers=2, encoder_embed_dim=48, encoder_attention_heads=4, encoder_ffn_embed_dim=80)
    lengths = dict(max_positions=512, tokens_per_sample=512, arch="roberta_base", task="masked_lm")
    activations = dict(activation_fn="gelu", pooler_activation_fn="tanh", untie_weights_roberta=False)
    dropouts = dict(dropout=0.1, attention_dropout=0.1, activation_dropout=0.0, pooler_dropout=0.0)
    others = dict(lr=[0.0005], adam_betas="(0.9, 0.98)", seed=1)
    return argparse.Namespace(**sizes | lengths | activations | dropouts | others | changes)


LAYER_NAMES = {  # fairseq's -> transformers'
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}


def to_fairseq(tensors, side="decoder", stacked=False, norm="emb_layer_norm", head="sentence_classification_head"):
    """transformers' tensors under fairseq's names, taken from the modules of fairseq, not from the converter."""
    sentence = f"{side}.sentence_encoder"
    names = {f"{sentence}.{norm}": "roberta.embeddings.LayerNorm"}
    for i in sorted({key.split(".")[3] for key in tensors if ".layer." in key}):
        names |= {f"{sentence}.layers.{i}.{ours}": f"roberta.encoder.layer.{i}.{x}" for ours, x in LAYER_NAMES.items()}
    if "lm_head.bias" in tensors:
        names |= {f"{side}.lm_head.{name}": f"lm_head.{name}" for name in ("dense", "layer_norm")}
    else:
        names |= {f"classification_heads.{head}.{name}": f"classifier.{name}" for name in ("dense", "out_proj")}
    state = {f"{ours}.{kind}": tensors[f"{x}.{kind}"] for ours, x in names.items() for kind in ("weight", "bias")}
    for query in [key for key in state if stacked and ".q_proj." in key]:
        parts = [state.pop(query.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        state[query.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    state[f"{sentence}.embed_tokens.weight"] = tensors["roberta.embeddings.word_embeddings.weight"]
    state[f"{sentence}.embed_positions.weight"] = tensors["roberta.embeddings.position_embeddings.weight"]
    if "lm_head.bias" in tensors:
        state[f"{side}.lm_head.weight"] = state[f"{sentence}.embed_tokens.weight"]  # tied, as in fairseq
        state[f"{side}.lm_head.bias"] = tensors["lm_head.bias"]
    return state


def checkpoint(theirs, *form, **settings):
    """What fairseq saves, with the model as to_fairseq names it."""
    return {"args": arguments(), "model": to_fairseq(theirs.state_dict(), *form, **settings)}


@torch.no_grad()
def without_token_type(theirs):
    """Sets the token-type row to zero: fairseq has none."""
    theirs.state_dict()[TOKEN_TYPE].zero_()
    return theirs


def masked_lm_model():
    return without_token_type(huggingface_model())


@torch.no_grad()
def classifier_model():
    theirs = without_token_type(huggingface_model(kind="CamembertForSequenceClassification", num_labels=3))
    for parameter in theirs.classifier.parameters():
        parameter.copy_(0.5 * torch.randn_like(parameter))
    return theirs


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def layer_norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def fairseq_attention(state, name, x, num_heads, padding):
    """MultiheadAttention: (T, B, C) in and out, the query scaled before the product, heads folded into the batch."""
    length, batch, channels = x.shape
    size = channels // num_heads
    if f"{name}.in_proj_weight" in state:
        q, k, v = F.linear(x, state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
    else:
        q, k, v = (linear(state, f"{name}.{letter}_proj", x) for letter in "qkv")
    q = q * size**-0.5
    q, k, v = (each.reshape(length, batch * num_heads, size).transpose(0, 1) for each in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, num_heads, length, length)
    scores = scores.masked_fill(padding[:, None, None, :], float("-inf")).view(batch * num_heads, length, length)
    context = torch.bmm(scores.softmax(dim=-1), v)  # (B * heads, T, C / heads)
    return linear(state, f"{name}.out_proj", context.transpose(0, 1).reshape(length, batch, channels))


def fairseq_features(state, tokens, num_heads=4, activation=F.gelu):
    """TransformerSentenceEncoder in evaluation mode: tokens (B, T) -> (B, T, C)"""
    side = "encoder" if any(key.startswith("encoder.") for key in state) else "decoder"
    sentence = f"{side}.sentence_encoder"
    padding, real = tokens.eq(1), tokens.ne(1).int()
    positions = (torch.cumsum(real, dim=1).type_as(real) * real).long() + 1
    x = state[f"{sentence}.embed_tokens.weight"][tokens] + state[f"{sentence}.embed_positions.weight"][positions]
    norm = "emb_layer_norm" if f"{sentence}.emb_layer_norm.weight" in state else "layernorm_embedding"
    x = layer_norm(state, f"{sentence}.{norm}", x)
    x = x * (1 - padding.unsqueeze(-1).type_as(x))  # only fairseq zeroes padding here
    x = x.transpose(0, 1)  # (T, B, C)
    num_layers = sum(key.endswith(".fc1.weight") for key in state)
    for layer in (f"{sentence}.layers.{i}" for i in range(num_layers)):
        attention = fairseq_attention(state, f"{layer}.self_attn", x, num_heads, padding)
        x = layer_norm(state, f"{layer}.self_attn_layer_norm", x + attention)
        inner = activation(linear(state, f"{layer}.fc1", x))
        x = layer_norm(state, f"{layer}.final_layer_norm", x + linear(state, f"{layer}.fc2", inner))
    return x.transpose(0, 1)


def fairseq_masked_lm(state, tokens):
    """RobertaLMHead: dense, GELU, LayerNorm, the tied matrix, the bias."""
    x = fairseq_features(state, tokens)
    head = "encoder.lm_head" if "encoder.lm_head.bias" in state else "decoder.lm_head"
    x = layer_norm(state, f"{head}.layer_norm", F.gelu(linear(state, f"{head}.dense", x)))
    return F.linear(x, state[f"{head}.weight"]) + state[f"{head}.bias"]


def fairseq_classifier(state, tokens, head="sentence_classification_head", activation=F.gelu):
    """RobertaClassificationHead: the first token's hidden state, dense, tanh, out_proj."""
    x = fairseq_features(state, tokens, activation=activation)[:, 0, :]
    x = torch.tanh(linear(state, f"classification_heads.{head}.dense", x))
    return linear(state, f"classification_heads.{head}.out_proj", x)
