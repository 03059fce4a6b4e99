"""The fused loss behind a model: the tied decoder, micro-batches, a compiled encoder, two ranks."""

import os

import pytest
import torch
from torch import nn

from losses import IGNORE_INDEX, distillation_loss, fused_distillation_loss
from model import EncoderConfig, MaskedLM, initialise_student
from tests.helpers import DEVICE, assert_close, gradients

CONFIG = EncoderConfig(4, 24, 2, 48, 211, 40, dropout=0.0)


def models(device=DEVICE):
    torch.manual_seed(0)
    teacher = MaskedLM(CONFIG).to(device).eval().requires_grad_(False)
    return initialise_student(teacher, [0, 2]).train(), teacher


def model_inputs(device=DEVICE):
    """input_ids, labels, real: six sequences of different lengths, each (6, 16)."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 211, (6, 16), generator=generator)
    real = torch.arange(16) < torch.randint(3, 17, (6, 1), generator=generator)
    labels = torch.where((torch.rand(input_ids.shape, generator=generator) < 0.3) & real, input_ids, IGNORE_INDEX)
    return tuple(tensor.to(device) for tensor in (input_ids.where(real, 1), labels, real))


def counts(labels, real):
    return dict(real_tokens=int(real.sum()), masked_tokens=int((labels != IGNORE_INDEX).sum()))


class Step(nn.Module):
    """A student whose forward pass returns the total, as DistributedDataParallel needs it."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, [teacher]  # in a list: not a submodule

    def forward(self, input_ids, labels, real, plain=False, **settings):
        both = self.student, *self.teacher
        hidden = [model.encoder(input_ids, real) for model in both]
        if plain:
            logits = [model.head(last) for model, last in zip(both, hidden)]
            return distillation_loss(*logits, *hidden, labels, real).total()
        hidden, states = [last.flatten(0, 1) for last in hidden], []
        for model, last in zip(both, hidden):
            states += [model.transform(last), model.decoder, model.bias]
        return fused_distillation_loss(*states, labels.flatten(), real.flatten(), *hidden, **settings)[0]


def expected_gradients(device=DEVICE):
    """Of the plain form, for the whole batch."""
    student, teacher = models(device)
    Step(student, teacher)(*model_inputs(device), plain=True).backward()
    return gradients(student)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled encoder"])
def test_the_tied_decoder_gets_the_gradients_of_both_its_uses(compiled):
    student, teacher = models()
    if compiled:
        student.encoder.compile(dynamic=False)
    Step(student, teacher)(*model_inputs()).backward()
    assert_close(gradients(student), expected_gradients())


@pytest.mark.gpu
def test_micro_batches_add_up_to_one_batch():
    (student, teacher), whole = models(), model_inputs()
    for part in zip(*(tensor.split(4) for tensor in whole)):
        Step(student, teacher)(*part, **counts(*whole[1:])).backward()
    assert_close(gradients(student), expected_gradients())


def train_rank(rank, folder):
    """One of two ranks, with its part of the batch; saves its gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    (student, teacher), whole = models("cpu"), model_inputs("cpu")
    step = nn.parallel.DistributedDataParallel(Step(student, teacher))
    total = step(*(tensor.split(4)[rank] for tensor in whole), **counts(*whole[1:]))
    (2 * total).backward()  # the ranks' gradients are averaged, but must be summed
    torch.save(gradients(student), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # destroyed at once, a gloo group can wait for ever: for its thread, which waits for Python's lock


def test_two_ranks_equal_one(tmp_path):
    torch.multiprocessing.spawn(train_rank, (tmp_path,), nprocs=2)  # raises if one fails
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"{rank}.pt"), expected_gradients("cpu"))
