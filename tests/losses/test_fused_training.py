"""The fused loss behind a model: the tied decoder, micro-batches, a compiled encoder, two ranks."""

import multiprocessing

import pytest
import torch
from torch import nn

from losses import IGNORE_INDEX, distillation_loss, fused_distillation_loss
from model import EncoderConfig, MaskedLM, initialise_student
from tests.helpers import relative_norm

CONFIG = EncoderConfig(4, 24, 2, 48, 211, 40, dropout=0.0)


def models():
    torch.manual_seed(0)
    teacher = MaskedLM(CONFIG).eval().requires_grad_(False)
    return initialise_student(teacher, [0, 2]).train(), teacher


def model_inputs():
    """input_ids, labels, real: six sequences of different lengths, each (6, 16)."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 211, (6, 16), generator=generator)
    real = torch.arange(16) < torch.randint(3, 17, (6, 1), generator=generator)
    labels = torch.where((torch.rand(input_ids.shape, generator=generator) < 0.3) & real, input_ids, IGNORE_INDEX)
    return input_ids.where(real, 1), labels, real


def counts(labels, real):
    return dict(real_tokens=int(real.sum()), masked_tokens=int((labels != IGNORE_INDEX).sum()))


class Step(nn.Module):
    """A student whose forward pass returns the total, as DistributedDataParallel needs it."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, [teacher]  # in a list: not a submodule

    def forward(self, input_ids, labels, real, plain=False, **settings):
        states = []
        hidden = [model.encoder(input_ids, real) for model in (self.student, *self.teacher)]
        if plain:
            logits = [model.head(states) for model, states in zip((self.student, *self.teacher), hidden)]
            return distillation_loss(*logits, *hidden, labels, real).total()
        for model, last in zip((self.student, *self.teacher), hidden):
            states += [model.transform(last).flatten(0, 1), model.decoder, model.bias]
        hidden = (last.flatten(0, 1) for last in hidden)
        return fused_distillation_loss(*states, labels.flatten(), real.flatten(), *hidden, **settings)[0]


def gradients(student):
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def expected_gradients():
    """Of the plain form, for the whole batch."""
    student, teacher = models()
    Step(student, teacher)(*model_inputs(), plain=True).backward()
    return gradients(student)


def assert_equal_gradients(actual, expected):
    for name, gradient in expected.items():
        if not name.endswith("attention.key.bias"):  # zero up to rounding: softmax ignores it
            assert relative_norm(actual[name], gradient) < 1e-5, name


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled encoder"])
def test_the_tied_decoder_gets_the_gradients_of_both_its_uses(compiled):
    student, teacher = models()
    if compiled:
        student.encoder.compile(dynamic=False)
    Step(student, teacher)(*model_inputs()).backward()
    assert_equal_gradients(gradients(student), expected_gradients())


def test_micro_batches_add_up_to_one_batch():
    (student, teacher), whole = models(), model_inputs()
    for part in zip(*(tensor.split(4) for tensor in whole)):
        Step(student, teacher)(*part, **counts(*whole[1:])).backward()
    assert_equal_gradients(gradients(student), expected_gradients())


def train_rank(rank, folder):
    """One of two ranks, with its part of the batch; saves its gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    (student, teacher), whole = models(), model_inputs()
    step = nn.parallel.DistributedDataParallel(Step(student, teacher))
    total = step(*(tensor.split(4)[rank] for tensor in whole), **counts(*whole[1:]))
    (2 * total).backward()  # the ranks' gradients are averaged, but must be summed
    torch.save(gradients(student), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=train_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    expected = expected_gradients()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    for rank in range(2):
        assert_equal_gradients(torch.load(tmp_path / f"{rank}.pt"), expected)
