"""A tiny run for the tests of checkpoints: a student with its optimiser, trained by random gradients."""

from types import SimpleNamespace

import pytest
import torch

from losses import LossSettings
from model import EncoderConfig, MaskedLM
from model.training.device import Runtime
from model.training.optim import make_optimiser, optimiser_step
from model.training.run_state import gather, newest, restore
from model.training.state import TrainState
from train import Distiller

CONFIG = EncoderConfig(1, 8, 2, 12, 30, max_positions=12, dropout=0.0)
FILES = ("student.safetensors", "state.safetensors", "state.json")
WIDER = SimpleNamespace(config=EncoderConfig(1, 12, 2, 12, 30))  # a teacher of another width, so with a projection
RUNTIME = Runtime(torch.device("cpu"))


class Run:
    """The seed and the step determine the gradients. A teacher of another width adds a projection."""

    def __init__(self, seed=0, teacher=WIDER, scaled=False, config=CONFIG):
        torch.manual_seed(seed)
        self.distiller = Distiller(MaskedLM(config), teacher, LossSettings(), RUNTIME)
        self.optimiser = make_optimiser(self.distiller, 0.01, weight_decay=0.1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=2, enabled=scaled)
        self.state = TrainState()

    def train(self, steps=1):
        for _ in range(steps):
            self.state.step += 1
            generator = torch.Generator().manual_seed(self.state.step)
            for parameter in self.distiller.parameters():
                parameter.grad = self.scaler.scale(torch.randn(parameter.shape, generator=generator))
            optimiser_step(self.distiller, self.optimiser, self.scaler, 0.01, 5.0)
        return self

    def gather(self, **values):
        values = {"options": {"lr": 0.1}, **self.state.to_json(), **values}
        return gather(self.distiller, self.optimiser, self.scaler, values)

    def save(self, writer, **values):
        path = writer.save(self.state.step, self.distiller.student, *self.gather(**values))
        writer.wait()
        return path

    def restore(self, checkpoint):
        self.state = TrainState.from_json(restore(checkpoint, self.distiller, self.optimiser, self.scaler))
        return self

    def tensors(self):
        """A copy of every tensor that determines how the run continues, by name."""
        tensors = {name: tensor.clone() for name, tensor in self.distiller.state_dict().items()}
        for number, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"{number}.{name}": tensor.clone() for name, tensor in values.items()}
        return tensors


def same(one, other):
    equal = (one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)
    return one.keys() == other.keys() and all(equal)


def intact(out):
    """The newest checkpoint, none being damaged."""
    return newest(out, pytest.fail)


def names(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith("."))


def step_folder(out, number):
    return out / "checkpoints" / f"step-{number:09}"


def falls_back(out, contents, why=""):
    """Whether the newest checkpoint, of step 2, is skipped with one message; what is read is as it was written.

    contents: of each step's checkpoint.
    """
    messages = []
    checkpoint = newest(out, messages.append)
    expected = contents[checkpoint.values["step"]]
    assert same(checkpoint.student, expected.student) and same(checkpoint.tensors, expected.tensors), why
    assert checkpoint.values == expected.values and len(messages) == (checkpoint.values["step"] != 2), why
    for message in messages:
        assert "is damaged" in message and "step-000000002" in message, why
        assert message.endswith(" Resuming after step 1 instead.") and "\n" not in message and len(message) < 600
    return bool(messages)
