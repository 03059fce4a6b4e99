"""Equation (13): computed without holding the logits, as training runs it. `distillation.py` is the form to read first.

The logits of N tokens are N × 32,005 numbers, and the plain form keeps about ten such tensors alive. Here the
tokens go through the two decoders in chunks. A chunk's logits give its part of the sums and are then overwritten by
the gradient with respect to them, which is multiplied into the gradients of state, decoder and bias at once; the
next chunk reuses the memory. The backward pass only has to scale the result.

Shapes: N tokens, M of them count, C in a chunk, R in a block of a chunk; d_s, d_t widths of student and teacher;
V = |W| vocabulary size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cosine import cosine_loss
from .distillation import WEIGHTS, DistillationLoss, at_least_1
from .mlm import IGNORE_INDEX
from .products import add_column_sums, add_product, of_device, parts_of_vocabulary
from .soft_label import DIRECTIONS, at_least_float32, check_divergence

CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**29}  # of a chunk's logits, both models together (measured: eval/LOG.md)
BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**25}  # of one model's logits per pass, uncompiled; on a CPU, what fits its cache
HIDDEN_ROWS = {"cpu": 2**11, "cuda": 2**14}  # tokens per part of (11)
ALIGNMENT = 64  # rows of logits start at a multiple of it: unaligned rows of 32,005 make a CPU's product a third slower


class Decoder(NamedTuple):
    """One model's decoder and its input: logits = state @ weight.T + bias."""

    state: Tensor  # (N, d)
    weight: Tensor  # (V, d), the word embeddings
    bias: Tensor  # (V,)


class Tokens(NamedTuple):
    """The tokens that count, the masked ones first, so that later blocks need no labels."""

    rows: Tensor  # (M,) int64, their indices among the N
    positions: Tensor  # (N,) int64, the position of each token among the M; M if it does not count
    labels: Tensor  # (M,) int64, IGNORE_INDEX where not masked
    real: Tensor  # (M,) bool
    num_masked: int


class LossSettings(NamedTuple):
    """The keyword arguments of fused_distillation_loss that stay the same during a run."""

    direction: str = DIRECTIONS[0]
    temperature: float = 1.0
    weights: Sequence[float] = WEIGHTS
    chunk_bytes: int | None = None
    compiled: bool = False


def fused_distillation_loss(
    student_state: Tensor,
    student_decoder: Tensor,
    student_bias: Tensor,
    teacher_state: Tensor,
    teacher_decoder: Tensor,
    teacher_bias: Tensor,
    labels: Tensor,
    real: Tensor,
    student_hidden: Tensor | None = None,
    teacher_hidden: Tensor | None = None,
    *,
    direction: str = DIRECTIONS[0],
    temperature: float = 1.0,
    weights: Sequence[float] = WEIGHTS,
    real_tokens: int | Tensor | None = None,
    masked_tokens: int | Tensor | None = None,
    loss_scale: float | Tensor = 1.0,
    chunk_bytes: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, DistillationLoss]:
    """Equation (13), section 3.2.  Loss = 0.5 × SoftLabelLoss + 0.3 × CosineLoss + 0.2 × MLMLoss

    student_state, teacher_state: (N, d_s), (N, d_t), the decoders' inputs `MaskedLM.transform(H_L)`;
    student_decoder, teacher_decoder: (V, d_s), (V, d_t); student_bias, teacher_bias: (V,);
    labels: (N,) int64, IGNORE_INDEX where not masked; real: (N,) bool;
    student_hidden, teacher_hidden: (N, d_h), the last hidden states of (11); without them that term is 0
    -> the total, (), which carries the gradients, and its terms as sums with counts, which carry none.

    - Tokens, direction, T²: as in `distillation_loss`. A token that is neither real nor masked goes through no
      decoder, and nothing of it is read. All terms are computed, also those of weight 0.
    - Denominators: real_tokens for (10) and (11), masked_tokens for (12): the counts of the whole optimiser step if
      this is one of its micro-batches; by default the counts of this call.
    - Gradients: of the student's state, decoder, bias and hidden states, computed in the forward pass and only if
      required. The backward pass multiplies them by the incoming gradient.
    - loss_scale: the GradScaler's scale, applied before the logits' gradient is rounded to half precision, where
      small gradients would otherwise underflow.
    - Precision: products in autocast's dtype if enabled, else in the state's. Softmaxes, sums, and the gradients of
      decoder and bias over the chunks in float32 (float64 for float64).
    - With labels and real on the CPU, the host never waits for a GPU; with them on the GPU, it waits once.
    - chunk_bytes: memory for the logits of a chunk, both models together; by default CHUNK_BYTES of the device.
    - compiled: the passes over the logits go through torch.compile; the first call takes longer.

    Raises ValueError for an unknown direction, a temperature that is not above 0, or shapes that do not match.
    """
    check_divergence(direction, temperature)
    student = Decoder(student_state, student_decoder, student_bias)
    teacher = Decoder(*(tensor.detach() for tensor in (teacher_state, teacher_decoder, teacher_bias)))
    check_shapes(student, teacher, labels, real)
    if (student_hidden is None) != (teacher_hidden is None):
        raise ValueError("student_hidden and teacher_hidden belong together: give both, or neither.")

    device = student_state.device
    masked = labels != IGNORE_INDEX
    counts = real.sum(), masked.sum()
    per_real, per_masked = (  # 1 / denominator, in float64, so that a float64 loss loses no digit
        1 / at_least_1(torch.as_tensor(own if given is None else given, dtype=torch.float64))
        for own, given in zip(counts, (real_tokens, masked_tokens), strict=True)
    )
    masked_rows, other_rows = masked.nonzero().squeeze(1), (real & ~masked).nonzero().squeeze(1)
    rows = torch.cat([masked_rows, other_rows])  # (M,)
    positions = torch.full_like(labels, len(rows))  # (N,)
    positions[rows] = torch.arange(len(rows), device=rows.device)
    tokens = Tokens(*(to_device(x, device) for x in (rows, positions, labels[rows], real[rows])), len(masked_rows))

    token_weights = weights[0] * per_real, weights[1] * per_real, weights[2] * per_masked
    settings = LossSettings(direction, temperature, weights, chunk_bytes, compiled)
    hidden = student_hidden, None if teacher_hidden is None else teacher_hidden.detach()
    total, *sums = FusedDistillation.apply(
        *student, *hidden, teacher, tokens, token_weights, loss_scale, settings, torch.is_grad_enabled()
    )
    return total, DistillationLoss(*sums, *counts)


class FusedDistillation(torch.autograd.Function):
    """The total, whose gradient is computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx,
        student_state: Tensor,
        student_decoder: Tensor,
        student_bias: Tensor,
        student_hidden: Tensor | None,
        teacher_hidden: Tensor | None,
        teacher: Decoder,
        tokens: Tokens,
        token_weights: tuple[Tensor, Tensor, Tensor],
        loss_scale: float | Tensor,
        settings: LossSettings,
        differentiate: bool,
    ) -> tuple[Tensor, ...]:
        """-> the total and the sums of (10), (11), (12), each ().

        token_weights: what one token's term of (10), (11), (12) contributes to the total, () in float64.
        """
        student = Decoder(student_state, student_decoder, student_bias)
        wanted = [differentiate and needed for needed in ctx.needs_input_grad[:4]]
        scaled = [weight * loss_scale for weight in token_weights]
        device_type, dtype = student_state.device.type, student_state.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):  # every dtype is explicit in here
            soft_label, mlm, (of_state, *gradients) = decode_in_chunks(
                student, teacher, tokens, scaled[::2], dtype, wanted[:3], settings
            )
            state_gradient = None if of_state is None else of_state[tokens.positions]  # (N, d_s)
            cosine, hidden_gradient = soft_label.new_zeros(()), None
            if student_hidden is not None:
                cosine, hidden_gradient = cosine_in_parts(student_hidden, teacher_hidden, tokens, scaled[1], wanted[3])
        hidden = student_state if student_hidden is None else student_hidden
        ctx.dtypes, ctx.loss_scale = [tensor.dtype for tensor in (*student, hidden)], loss_scale
        ctx.save_for_backward(state_gradient, *gradients, hidden_gradient)
        sums = soft_label, cosine, mlm
        ctx.mark_non_differentiable(*sums)
        total = sum(weight * term for weight, term in zip(token_weights, sums, strict=True))
        return total.to(soft_label.dtype), *sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: Tensor, *_):
        factor = grad_total / ctx.loss_scale
        is_one = not factor.is_cuda and factor == 1  # as in training; it saves a CPU a pass over (V, d_s)
        gradients = (
            None if gradient is None else (gradient if is_one else gradient * factor).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, *(None,) * 7


def cosine_in_parts(
    student_hidden: Tensor, teacher_hidden: Tensor, tokens: Tokens, weight: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum of (11), (), and its gradient times weight, (N, d_h), if wanted; by `cosine_loss` in small parts."""
    accum_dtype = torch.promote_types(student_hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=accum_dtype, device=student_hidden.device)
    num_tokens, size = len(tokens.rows), of_device(HIDDEN_ROWS, student_hidden.device)
    gradient = student_hidden.new_zeros(num_tokens + 1, student_hidden.shape[1], dtype=accum_dtype) if wanted else None
    for start in range(0, num_tokens, size):
        rows, real = tokens.rows[start : start + size], tokens.real[start : start + size]
        with torch.enable_grad():
            part = student_hidden[rows].detach().to(accum_dtype).requires_grad_(wanted)  # (C, d_h)
            cosine, _ = cosine_loss(part, teacher_hidden[rows].to(accum_dtype), real)
        total += cosine.detach()
        if wanted:
            gradient[start : start + len(rows)] = torch.autograd.grad(cosine, part)[0] * weight.to(accum_dtype)
    return total, gradient[tokens.positions] if wanted else None


def decode_in_chunks(
    student: Decoder,
    teacher: Decoder,
    tokens: Tokens,
    token_weights: Sequence[Tensor],
    dtype: torch.dtype,
    wanted: Sequence[bool],
    settings: LossSettings,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Chunk by chunk: the sums of (10) and (12), and the wanted gradients of state, weight and bias.

    token_weights: of one token's term of (10) and of (12), times the loss scale; dtype: of the products
    -> (), (), and (M + 1, d_s) with a last row of zeros, (V, d_s), (V,), at least in float32.
    """
    device = student.state.device
    accum_dtype = torch.promote_types(dtype, torch.float32)
    student_weight, teacher_weight = student.weight.to(dtype), teacher.weight.to(dtype)
    biases = student.bias.to(accum_dtype), teacher.bias.to(accum_dtype)
    soft_weight = tokens.real[:, None] * token_weights[0].to(accum_dtype)  # (M, 1)
    mlm_weight = (tokens.labels != IGNORE_INDEX)[:, None] * token_weights[1].to(accum_dtype)  # (M, 1)
    vocab_size, num_tokens = len(student_weight), len(tokens.rows)
    parts = parts_of_vocabulary(vocab_size, device)
    shapes = (num_tokens + 1, student.state.shape[1]), student.weight.shape, student.bias.shape
    state_gradient, weight_gradient, bias_gradient = gradients = [
        torch.zeros(shape, dtype=accum_dtype, device=device) if wants else None
        for shape, wants in zip(shapes, wanted, strict=True)
    ]
    stride = -(-vocab_size // ALIGNMENT) * ALIGNMENT
    most = max(1, (settings.chunk_bytes or of_device(CHUNK_BYTES, device)) // (2 * stride * dtype.itemsize))
    num_chunks = max(1, -(-num_tokens // most))
    chunk_rows = min(most, max(1, -(-num_tokens // (num_chunks * ALIGNMENT))) * ALIGNMENT)  # of nearly equal size
    memory = torch.empty(2, min(chunk_rows, num_tokens), stride, dtype=dtype, device=device)[..., :vocab_size]
    block_rows = max(1, min(chunk_rows, of_device(BLOCK_BYTES, device) // (stride * accum_dtype.itemsize)))
    first_pass, second_pass = sum_rows, overwrite_with_gradient
    if settings.compiled:  # each pass is then one parallel loop over a chunk's rows
        block_rows, first_pass, second_pass = chunk_rows, compiled(sum_rows), compiled(overwrite_with_gradient)
    divergence = settings.direction, settings.temperature
    sums = torch.empty(len(RowSums._fields), num_tokens, 1, dtype=accum_dtype, device=device)
    label_logits = torch.empty(tokens.num_masked, 1, dtype=accum_dtype, device=device)

    for start in range(0, num_tokens, chunk_rows):
        rows = tokens.rows[start : start + chunk_rows]  # (C,)
        student_state, teacher_state = (model.state[rows].to(dtype) for model in (student, teacher))  # (C, d)
        student_logits, teacher_logits = memory[:, : len(rows)]  # (C, V)
        for part in parts:
            torch.mm(student_state, student_weight[part].T, out=student_logits[:, part])
            torch.mm(teacher_state, teacher_weight[part].T, out=teacher_logits[:, part])
        of_masked = tokens.labels[start : min(start + len(rows), tokens.num_masked), None]
        label_logits[start : start + len(of_masked)] = student_logits[: len(of_masked)].gather(1, of_masked)
        for top in range(0, len(rows), block_rows):
            block = slice(top, min(top + block_rows, len(rows)))
            here = slice(start + block.start, start + block.stop)
            logits = student_logits[block], teacher_logits[block], *biases
            torch.stack(first_pass(*logits, *divergence), out=sums[:, here])
            if any(wanted):
                labels = tokens.labels[here] if here.start < tokens.num_masked else None
                weights = soft_weight[here], mlm_weight[here]
                second_pass(*logits, RowSums(*sums[:, here]), *weights, labels, *divergence)
        logits_gradient = student_logits  # overwritten
        if state_gradient is not None:
            for part in parts:
                of_chunk = state_gradient[start : start + len(rows)]  # (C, d_s)
                add_product(of_chunk, logits_gradient[:, part], student_weight[part])
        if weight_gradient is not None:
            add_product(weight_gradient, logits_gradient.T, student_state)  # (V, d_s)
        if bias_gradient is not None:
            add_column_sums(bias_gradient, logits_gradient)  # (V,)

    soft_label = torch.where(tokens.real, RowSums(*sums.squeeze(2)).divergence(*divergence), 0).sum()
    masked, labels = RowSums(*sums[:, : tokens.num_masked]), tokens.labels[: tokens.num_masked, None]
    mlm = (masked.student_sum_1.log() + masked.student_max - label_logits - biases[0][labels]).sum()
    return soft_label, mlm, gradients


class RowSums(NamedTuple):
    """What the terms and the gradient of a row of logits need, each (R, 1).

    With u = (z^s − max z^s) / T and v = (z^t − max z^t) / T:  p = e^u / Σ e^u,  q = e^v / Σ e^v.
    """

    student_max: Tensor  # max z^s
    teacher_max: Tensor  # max z^t
    student_sum: Tensor  # Σ e^u
    teacher_sum: Tensor  # Σ e^v
    weighted_sum: Tensor  # Σ e^u (u − v), or Σ e^v (v − u) for D_KL(q ‖ p)
    student_sum_1: Tensor  # Σ e^(z^s − max z^s), the sum at T = 1

    def divergence(self, direction: str, temperature: float) -> Tensor:
        """T² D_KL of each row, with  D_KL(p ‖ q) = Σ e^u (u − v) / Σ e^u − log Σ e^u + log Σ e^v."""
        sums = (self.student_sum, self.teacher_sum)
        own, other = sums if direction == "student-teacher" else sums[::-1]
        return temperature**2 * (self.weighted_sum / own - own.log() + other.log())


def sum_rows(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_bias: Tensor,
    teacher_bias: Tensor,
    direction: str,
    temperature: float,
) -> RowSums:
    """The first pass over a block.  student_logits, teacher_logits: (R, V), without their biases (V,)."""
    student = at_least_float32(student_logits) + student_bias
    teacher = at_least_float32(teacher_logits) + teacher_bias
    student_max, teacher_max = student.amax(dim=-1, keepdim=True), teacher.amax(dim=-1, keepdim=True)
    u, v = (student - student_max) / temperature, (teacher - teacher_max) / temperature
    exp_u, exp_v = u.exp(), v.exp()
    weighted = exp_u * (u - v) if direction == "student-teacher" else exp_v * (v - u)
    student_sum, teacher_sum, weighted_sum = (x.sum(dim=-1, keepdim=True) for x in (exp_u, exp_v, weighted))
    student_sum_1 = student_sum if temperature == 1 else (student - student_max).exp().sum(dim=-1, keepdim=True)
    return RowSums(student_max, teacher_max, student_sum, teacher_sum, weighted_sum, student_sum_1)


def overwrite_with_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_bias: Tensor,
    teacher_bias: Tensor,
    sums: RowSums,
    soft_weight: Tensor,
    mlm_weight: Tensor,
    labels: Tensor | None,
    direction: str,
    temperature: float,
) -> None:
    """The second pass: the gradient of (10) and (12) overwrites the student's logits.

    soft_weight, mlm_weight: (R, 1), 0 for tokens that do not count; labels: (R,), or None if the block has no masked
    token.

    With p and q of RowSums, and the terms of `soft_label_loss` and `mlm_loss`:
      T² D_KL(p ‖ q)  has the gradient  T p (u − v − Σ p (u − v))  with respect to z^s;
      T² D_KL(q ‖ p)  has  T (p − q);
      − log softmax(z^s)_label  has  softmax(z^s) − 1[w = label].
    """
    student = at_least_float32(student_logits) + student_bias - sums.student_max
    u = student / temperature
    v = (at_least_float32(teacher_logits) + teacher_bias - sums.teacher_max) / temperature
    p = u.exp() / sums.student_sum
    if direction == "student-teacher":
        gradient = p * (u - v - sums.weighted_sum / sums.student_sum)
    else:
        gradient = p - v.exp() / sums.teacher_sum
    gradient = gradient * (temperature * soft_weight)
    if labels is not None:
        p = p if temperature == 1 else student.exp() / sums.student_sum_1
        is_label = torch.arange(p.shape[1], device=labels.device) == labels[:, None]
        gradient = gradient + mlm_weight * (p - is_label.to(p.dtype))
    student_logits.copy_(gradient)


@functools.cache
def compiled(function: Callable) -> Callable:
    """The function through torch.compile: for one number of rows, and once more, for any, when another comes.

    Never with CUDA graphs, which would copy the logits.
    """
    return torch.compile(function, options={"triton.cudagraphs": False})


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the CPU to a GPU through pinned memory, without waiting."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def check_shapes(student: Decoder, teacher: Decoder, labels: Tensor, real: Tensor) -> None:
    """Raises ValueError if states, weights, biases, labels and real do not match."""
    for name, (state, weight, bias) in (("student", student), ("teacher", teacher)):
        if state.ndim != 2 or weight.ndim != 2 or state.shape[1] != weight.shape[1] or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"{name}_state {tuple(state.shape)}, {name}_decoder {tuple(weight.shape)} and {name}_bias "
                f"{tuple(bias.shape)} must be (N, d), (|W|, d) and (|W|,)."
            )
    size, teacher_size = len(student.weight), len(teacher.weight)
    if size != teacher_size:
        raise ValueError(f"The student's vocabulary has {size} tokens, the teacher's {teacher_size}.")
    if not len(student.state) == len(teacher.state) == len(labels) == len(real) or labels.ndim != 1 or real.ndim != 1:
        raise ValueError(
            f"student_state {tuple(student.state.shape)}, teacher_state {tuple(teacher.state.shape)}, labels "
            f"{tuple(labels.shape)} and real {tuple(real.shape)} must have one row per token."
        )
