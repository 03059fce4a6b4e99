"""The choice of device, precision and compilation, and the peak speed of a device."""

from unittest.mock import Mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data import OptionError
from model import EncoderConfig, MaskedLM
from model.training import device
from model.training.device import (
    Runtime,
    choose_compiled,
    choose_device,
    choose_precision,
    seed_generators,
    training_flops,
)
from tests.helpers import padded_batch, relative_norm

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_device():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(OptionError, match="--device must be auto, cpu, cuda, cuda:1, …, not 'abacus'.$"):
        choose_device("abacus")


def test_a_precision_that_the_device_does_not_support_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))  # before Ampere
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P40")
    with pytest.raises(OptionError, match="--precision bf16 is not supported by Tesla P40. Use fp16 or fp32"):
        choose_precision("bf16", GPU)
    assert choose_precision("auto", GPU) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_precision("auto", GPU) == "bf16"
    monkeypatch.setattr(torch, "autocast", Mock(side_effect=RuntimeError("autocast is not supported for that dtype")))
    with pytest.raises(OptionError, match="--precision fp16 is not supported by cpu"):
        choose_precision("fp16", CPU)
    with pytest.raises(OptionError, match="--precision int8 runs on a CPU, not on cuda"):
        choose_precision("int8", GPU)


@pytest.mark.parametrize(("name", "expected"), [("avx2", "fp32"), ("amx_bf16", "bf16"), ("avx512_bf16", "bf16")])
def test_auto_precision_on_a_cpu_depends_on_its_instructions(monkeypatch, capsys, name, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert choose_precision("auto", CPU) == expected and choose_precision("bf16", CPU) == "bf16"
    assert ("this processor emulates bf16" in capsys.readouterr().err) == (expected == "fp32")


def test_freed_memory_is_kept_on_a_cpu_and_operations_are_deterministic_on_a_gpu(monkeypatch):
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr(torch, "use_deterministic_algorithms", Mock())
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(device, "keep_freed_memory", Mock())
    device.set_up_process(CPU)
    device.keep_freed_memory.assert_called_once_with()
    torch.use_deterministic_algorithms.assert_not_called()
    device.set_up_process(GPU)
    torch.use_deterministic_algorithms.assert_called_once_with(True)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert device.os.environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def test_compilation(monkeypatch, capsys):
    monkeypatch.setattr("torch.compile", lambda function, **settings: function)  # as if a compiler worked
    assert choose_compiled("on", CPU, worth_it=False) and choose_compiled("auto", CPU, worth_it=True)
    assert not choose_compiled("auto", CPU, worth_it=False) and not choose_compiled("off", CPU, worth_it=True)
    assert capsys.readouterr().out.splitlines()[-2:] == ["compile   off (short run)", "compile   off"]
    monkeypatch.setattr("torch.compile", Mock(side_effect=RuntimeError("no compiler\nfound here")))
    assert not choose_compiled("auto", CPU, worth_it=True)
    assert "compile   off: torch.compile does not work here (no compiler)" in capsys.readouterr().out
    with pytest.raises(OptionError, match="--compile on: torch.compile does not work for cpu"):
        choose_compiled("on", CPU, worth_it=True)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_teachers_matrices_are_cast_once(precision, dtype):
    """To what autocast casts them to at every product: the outputs are the same, but for rounded word embeddings."""
    torch.manual_seed(0)
    teacher = MaskedLM(EncoderConfig(4, 32, 2, 64, 1005)).eval().requires_grad_(False)
    student, runtime = MaskedLM(EncoderConfig(2, 32, 2, 64, 1005)), Runtime(CPU, precision)
    input_ids, _ = padded_batch((24,) * 8, 1005)
    with runtime.autocast():
        expected = teacher(input_ids).float()
        device.prepare_models(student, teacher, runtime)
        actual = teacher(input_ids).float()
    for module in teacher.modules():
        is_cast = isinstance(module, torch.nn.Linear) or module is teacher.encoder.embeddings.word
        for parameter in module.parameters(recurse=False):
            assert parameter.dtype == (dtype if is_cast else torch.float32), module
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert relative_norm(actual, expected) < 4 * torch.finfo(dtype).eps


# Names as CUDA gives them, and the half-precision peaks of the data sheets in 10¹² operations per second
KNOWN = {"NVIDIA L4": 121, "NVIDIA L40": 181, "NVIDIA L40S": 362, "Tesla T4": 65, "NVIDIA A10G": 70}
KNOWN |= {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835, "NVIDIA H200": 989}
KNOWN |= {"NVIDIA A100-SXM4-80GB": 312, "Tesla V100-SXM2-16GB": 125, "Tesla V100-PCIE-16GB": 112}
KNOWN |= {"NVIDIA TITAN RTX": 130.5, "NVIDIA GeForce RTX 3090": 71}
UNKNOWN = ["NVIDIA T400 4GB", "NVIDIA A10", "NVIDIA RTX A1000", "NVIDIA GH200 480GB", "AMD Instinct MI300X"]
UNKNOWN += ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]


@pytest.mark.parametrize(("name", "peak"), [*KNOWN.items(), *((name, None) for name in UNKNOWN)])
def test_a_gpu_is_found_by_its_whole_name(name, peak):
    fp32, fp16, bf16 = (device.peak_flops(name, precision) for precision in ("fp32", "fp16", "bf16"))
    assert fp16 == bf16 == (peak and peak * 1e12)
    assert fp32 is None if peak is None else 0 < fp32 < fp16


def test_the_peak_is_that_of_all_ranks(monkeypatch):
    peak = device.peak_tokens_per_second
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak(Runtime(GPU, "bf16"), 1, 1e9) == 312e3 and peak(Runtime(GPU, "bf16"), 8, 1e9) == 8 * 312e3
    assert peak(Runtime(GPU, "fp32"), 8, 1e9) == 8 * 19.5e3 and peak(Runtime(CPU, "bf16"), 8, 1e9) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T400 4GB")
    assert peak(Runtime(GPU, "bf16"), 8, 1e9) is None


STUDENT, TEACHER = EncoderConfig(2, 4, 2, 8, 10), EncoderConfig(1, 6, 2, 12, 10)


def test_training_flops_by_hand():
    """Blocks of 6 tokens. One layer: 4 d_h² + 2 d_h E + 2 n d_h multiplications per token; LM head: d_h² + d_h |W|."""
    student_layers, student_head = 2 * (4 * 16 + 2 * 4 * 8 + 2 * 6 * 4), 16 + 4 * 10
    assert (student_layers, student_head) == (352, 56)
    assert training_flops(STUDENT, None, 6, masked=0.25) == 3 * 2 * (352 + 0.25 * 56) == 2196
    teacher_forward = 2 * ((4 * 36 + 2 * 6 * 12 + 2 * 6 * 6) + (36 + 6 * 10))
    assert training_flops(STUDENT, TEACHER, 6, masked=0.25) == 3 * 2 * (352 + 56) + teacher_forward == 3360


def test_training_flops_against_pytorchs_counter():
    """The forward passes; a backward pass has two products for each of the forward pass."""
    student, teacher = MaskedLM(STUDENT).eval(), MaskedLM(TEACHER).eval()
    input_ids, _ = padded_batch((8, 8), 10)

    def counted(function):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            function()
        return counter.get_total_flops() / input_ids.numel()

    alone = counted(lambda: student.head(student.encoder(input_ids)[:, :2]))  # a quarter of the tokens is masked
    assert training_flops(STUDENT, None, 8, masked=0.25) == 3 * alone
    both = 3 * counted(lambda: student(input_ids)) + counted(lambda: teacher(input_ids))
    assert training_flops(STUDENT, TEACHER, 8, masked=0.25) == both


def test_seed_generators_draws_what_manual_seed_does():
    torch.manual_seed(2**62 + 1)
    expected = torch.rand(3)
    seed_generators(2**62 + 1, CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("levels", [127, 63])
def test_a_processor_without_vnni_is_told_what_int8_would_gain(monkeypatch, capsys, levels):
    monkeypatch.setattr("model.training.device.activation_levels", lambda: levels)
    assert choose_precision("int8", CPU) == "int8"
    assert ("int8 is about twice as fast as fp32" in capsys.readouterr().err) == (levels == 63)
