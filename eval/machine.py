"""What a run computes on, in which precision, and whether compiled."""

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from data import OptionError
from model import EncoderConfig

PEAKS = {  # operations a second of dense matrix products, by the makers' data sheets: fp32, half precision
    "H200": (67e12, 989e12), "H100": (67e12, 989e12), "A100": (19.5e12, 312e12), "V100": (15.7e12, 125e12),
    "L40S": (91.6e12, 362e12), "L4": (30.3e12, 121e12), "A10G": (31.2e12, 70e12), "T4": (8.1e12, 65e12),
    "TITAN RTX": (16.3e12, 130.5e12), "RTX 4090": (82.6e12, 165e12), "RTX 3090": (35.6e12, 71e12),
}  # fmt: skip
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Device, precision and compiler of a run, as chosen below."""

    device: torch.device
    precision: str = "fp32"
    compiled: bool = False

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def cast_products(self, model: nn.Module) -> None:
        """A frozen model's matrices in this precision, once: autocast would do it at every call."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.to(PRECISIONS[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Which does something in fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def choose_device(name: str) -> torch.device:
    """The device named, if this machine has it; auto is CUDA where there is one, else the CPU.  Raises OptionError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise OptionError(f"--device {name}: this machine or this PyTorch has none ({first_line(error)}).") from None
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16: the one asked for, if the device has it.  Raises OptionError.

    auto: bf16 where the device has it in hardware, else fp16 on CUDA, else fp32.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    else:
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = device.type == "cpu" and any(capabilities.get(key) for key in ("amx_bf16", "avx512_bf16", "bf16"))
    if name == "auto":
        return "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "fp32"
    if name == "bf16" and device.type == "cuda" and not has_bf16:
        raise OptionError(f"--precision bf16: {torch.cuda.get_device_name(device)} lacks it. Take fp16 or fp32.")
    if name != "fp32":
        try:
            with torch.autocast(device.type, PRECISIONS[name]):
                ones = torch.ones(8, 8, device=device)
                torch.nn.functional.linear(ones, ones).sum().item()
        except RuntimeError as error:
            raise OptionError(f"--precision {name}: the device {device} lacks it ({first_line(error)}).") from None
    if name == "bf16" and device.type == "cpu" and not has_bf16:
        print("note: this processor only imitates bf16; fp32 will be faster.", file=sys.stderr)
    return name


def choose_compiled(name: str, device: torch.device, worth_it: bool) -> bool:
    """Whether torch.compile is used: on, off, or auto: where it works, if it is worth its time.  Says what it chose.

    Raises OptionError for on where no compiler works.
    """
    if name == "off" or (name == "auto" and not worth_it):
        print("compile   off" + (", for so short a run" if name == "auto" else ""))
        return False
    try:
        torch.compile(torch.exp)(torch.zeros(8, device=device)).sum().item()
    except Exception as error:  # whatever a compiler that is missing, or too old, makes of it
        reason = first_line(error)
        if name == "on":
            raise OptionError(f"--compile on: no compiler works here for {device} ({reason}).") from None
        print(f"compile   off, for no compiler works here ({reason})")
        return False
    print("compile   on; the first step takes longer")
    return True


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:120]


def peak_speed(
    machine: Machine, student: EncoderConfig, teacher: EncoderConfig | None, block_size: int
) -> float | None:
    """Tokens a second at the device's peak, None where that is not known."""
    if machine.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(machine.device)
    known = [peaks[machine.precision != "fp32"] for word, peaks in PEAKS.items() if word in name]
    return known[0] / arithmetic(student, teacher, block_size) if known else None


def arithmetic(student: EncoderConfig, teacher: EncoderConfig | None, block_size: int) -> float:
    """Operations (2 for a multiplication with its addition) of a training step's matrix products, a token.

    The student's forward, and twice as much for its backward; the teacher's forward. Dropout, norms, softmaxes
    and the optimiser are left out.
    """

    def forward(config: EncoderConfig) -> float:
        width, inner = config.hidden_size, config.intermediate_size
        layer = 4 * width**2 + 2 * width * inner + 2 * block_size * width  # projections, feed-forward, attention
        return 2 * (config.num_layers * layer + width**2 + config.vocab_size * width)

    return 3 * forward(student) + (forward(teacher) if teacher else 0)
