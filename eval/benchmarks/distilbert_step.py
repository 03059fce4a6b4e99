"""The DistilBERT baseline: the training step of Hugging Face's DistilBERT distillation script, written again.

It uses transformers' models, holds the logits of both models, copies those of the real tokens by a mask, takes the
means of the losses over the micro-batch, and runs AdamW unfused. Only the benchmarks use it, to compare with.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.blocks import Batch
from model import EncoderConfig
from model.checkpoints.names import CONFIG_KEYS
from model.training.device import Runtime
from model.training.optim import BETAS, EPSILON
from model.training.options import Options


def baseline_model(config: EncoderConfig) -> nn.Module:
    """A transformers model of the same size, with random weights.  Raises ImportError without transformers."""
    from transformers import CamembertConfig, CamembertForMaskedLM

    sizes = {key: getattr(config, name) for name, key in CONFIG_KEYS.items()}
    sizes |= dict(attention_probs_dropout_prob=config.dropout, type_vocab_size=1)
    return CamembertForMaskedLM(CamembertConfig(**sizes))


def baseline_loss(student: nn.Module, teacher: nn.Module, batch: Batch, options: Options) -> Tensor:
    """The script's form of equation (13): D_KL(p^t ‖ p^s), and means over this micro-batch, not over the whole step.

    Shapes: B sequences, n tokens, N real tokens, |W| vocabulary size, d_h hidden size.
    """
    input_ids, labels, real, _ = batch
    inputs = dict(input_ids=input_ids, attention_mask=real, output_hidden_states=True)
    with torch.no_grad():
        teacher_out = teacher(**inputs)
    student_out = student(**inputs)

    def of_real_tokens(student_states: Tensor, teacher_states: Tensor) -> list[Tensor]:
        """(B, n, |W|) -> (N, |W|), or (B, n, d_h) -> (N, d_h)"""
        mask = real.unsqueeze(-1).expand_as(student_states)
        return [states.masked_select(mask).view(-1, mask.shape[-1]) for states in (student_states, teacher_states)]

    student_logits, teacher_logits = of_real_tokens(student_out.logits, teacher_out.logits)
    log_p = (student_logits / options.temperature).log_softmax(dim=-1)
    q = (teacher_logits / options.temperature).softmax(dim=-1)
    soft_label = options.temperature**2 * F.kl_div(log_p, q, reduction="batchmean")
    mlm = F.cross_entropy(student_out.logits.view(-1, student_out.logits.shape[-1]), labels.view(-1))
    student_hidden, teacher_hidden = of_real_tokens(student_out.hidden_states[-1], teacher_out.hidden_states[-1])
    cosine = F.cosine_embedding_loss(student_hidden, teacher_hidden, student_hidden.new_ones(len(student_hidden)))
    return sum(weight * term for weight, term in zip(options.weights, (soft_label, cosine, mlm), strict=True))


def baseline_step(
    student_config: EncoderConfig, teacher_config: EncoderConfig, options: Options, runtime: Runtime
) -> Callable[[Batch], None]:
    """-> a function that runs an optimiser step on a micro-batch; both models have random weights."""
    student = baseline_model(student_config).to(runtime.device).train()
    teacher = baseline_model(teacher_config).to(runtime.device).eval().requires_grad_(False)
    if runtime.compiled:
        student.compile(dynamic=False)
        teacher.compile(dynamic=False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=options.lr, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")

    def step(batch: Batch) -> None:
        with runtime.autocast():
            loss = baseline_loss(student, teacher, batch.to(runtime.device), options)
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(student.parameters(), options.clip)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()

    return step
