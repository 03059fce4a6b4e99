"""What a run computes on, and in which precision."""

import sys

import torch

from data import OptionError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:120]
