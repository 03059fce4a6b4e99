"""The step that this project is compared with: as the DistilBERT script of the paper's authors does it.

Transformers' models, logits of both held whole, those of real tokens copied out with a mask, means of each term over
the micro-batch, AdamW that is not fused. Written anew from what that script does; it is not a part of training.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.blocks import Batch
from model import EncoderConfig
from model.training.device import Runtime
from model.training.optim import BETAS, EPSILON
from train import Options


def baseline_model(config: EncoderConfig) -> nn.Module:
    """transformers' CamemBERT of the same sizes.  Raises ImportError where transformers is missing."""
    from transformers import CamembertConfig, CamembertForMaskedLM

    return CamembertForMaskedLM(
        CamembertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            type_vocab_size=1,
            layer_norm_eps=config.layer_norm_eps,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=config.pad_id,
        )
    )


def baseline_loss(student: nn.Module, teacher: nn.Module, batch: Batch, options: Options) -> Tensor:
    """Equation (13) as that script has it, teacher first: means over this micro-batch, from logits held whole."""
    input_ids, labels, real, _ = batch
    given = dict(input_ids=input_ids, attention_mask=real, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**given)
    ours = student(**given)
    chosen = real.unsqueeze(-1).expand_as(ours.logits)  # (B, n, |W|)
    student_logits, teacher_logits = (  # (N, |W|)
        logits.masked_select(chosen).view(-1, logits.shape[-1]) for logits in (ours.logits, theirs.logits)
    )
    soft_label = options.temperature**2 * F.kl_div(
        (student_logits / options.temperature).log_softmax(dim=-1),
        (teacher_logits / options.temperature).softmax(dim=-1),
        reduction="batchmean",
    )
    mlm = F.cross_entropy(ours.logits.view(-1, ours.logits.shape[-1]), labels.view(-1))
    chosen = real.unsqueeze(-1).expand_as(ours.hidden_states[-1])  # (B, n, d_h)
    student_hidden, teacher_hidden = (  # (N, d_h)
        model.hidden_states[-1].masked_select(chosen).view(-1, chosen.shape[-1]) for model in (ours, theirs)
    )
    cosine = F.cosine_embedding_loss(student_hidden, teacher_hidden, student_hidden.new_ones(len(student_hidden)))
    return sum(weight * term for weight, term in zip(options.weights, (soft_label, cosine, mlm), strict=True))


def baseline_step(
    student_config: EncoderConfig, teacher_config: EncoderConfig, options: Options, runtime: Runtime
) -> Callable[[Batch], None]:
    """-> one optimiser step on a micro-batch, with random weights."""
    student = baseline_model(student_config).to(runtime.device).train()
    teacher = baseline_model(teacher_config).to(runtime.device).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=options.lr, betas=BETAS, eps=EPSILON, weight_decay=0.0)

    def step(batch: Batch) -> None:
        with runtime.autocast():
            loss = baseline_loss(student, teacher, batch.to(runtime.device), options)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), options.clip)
        optimiser.step()
        optimiser.zero_grad()

    return step
