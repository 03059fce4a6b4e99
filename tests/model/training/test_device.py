"""Which device and which precision a run takes."""

import pytest
import torch

from data import OptionError
from model.training.device import Runtime, choose_compiled, choose_device, choose_precision


def test_the_device():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(OptionError, match="--device abacus"):
        choose_device("abacus")


def test_a_precision_that_the_device_lacks_is_a_sentence(monkeypatch):
    class Old:  # a CUDA device before Ampere, as far as the choice can see
        type = "cuda"

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P40")
    with pytest.raises(OptionError, match="bf16: Tesla P40 lacks it"):
        choose_precision("bf16", Old())
    assert choose_precision("auto", Old()) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_precision("auto", Old()) == "bf16"

    def lacks(*arguments):
        raise RuntimeError("autocast is not supported for that dtype")

    monkeypatch.setattr(torch, "autocast", lacks)
    with pytest.raises(OptionError, match="fp16: the device cpu lacks it"):
        choose_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(("capabilities", "expected"), [({}, "fp32"), ({"amx_bf16": True}, "bf16"),
                                                        ({"avx512_bf16": True}, "bf16")])  # fmt: skip
def test_the_precision_on_a_cpu_is_what_it_has(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", torch.device("cpu")) == expected


def test_whether_to_compile(monkeypatch, capsys):
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.compile", lambda function: function)  # as if a compiler worked
    assert choose_compiled("on", cpu, worth_it=False) and choose_compiled("auto", cpu, worth_it=True)
    assert not choose_compiled("auto", cpu, worth_it=False) and not choose_compiled("off", cpu, worth_it=True)
    assert capsys.readouterr().out.splitlines()[-2:] == ["compile   off, for so short a run", "compile   off"]

    def broken(function):
        raise RuntimeError("no compiler\nfound here")

    monkeypatch.setattr("torch.compile", broken)
    assert not choose_compiled("auto", cpu, worth_it=True)
    assert "compile   off, for no compiler works here (no compiler)" in capsys.readouterr().out
    with pytest.raises(OptionError, match="--compile on: no compiler works here for cpu"):
        choose_compiled("on", cpu, worth_it=True)


def test_the_matrices_of_products_are_cast_and_nothing_else():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Embedding(4, 3)])
    Runtime(torch.device("cpu"), "bf16").cast_products(model)
    found = [{parameter.dtype for parameter in module.parameters()} for module in model]
    assert found == [{torch.bfloat16}, {torch.float32}, {torch.float32}]
