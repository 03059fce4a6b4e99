"""The device of a run, its precision, torch.compile, and the device's peak speed."""

import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from data.cli import OptionError, first_line, is_out_of_memory, note

from ..config import EncoderConfig
from ..heads import MaskedLM
from ..inference import PRECISIONS, has_bf16
from ..memory import keep_freed_memory
from ..quantised import LEVELS, activation_levels
from .optim import FixedScale
from .stop import shielded

DEVICE_HELP = "auto (CUDA if available, else CPU), cpu, cuda, cuda:1, …"
PRECISION_HELP = "auto: bf16 if the hardware supports it, else fp16 on CUDA, else fp32"
INFERENCE_PRECISIONS = (*PRECISIONS, "int8")
INFERENCE_PRECISION_HELP = f"{PRECISION_HELP}; on a CPU, int8 for a file in int8"
GPU_PEAKS = {  # floating-point operations per second of dense matrix products, from the data sheets: fp32, bf16/fp16
    "H200 NVL": (60e12, 835e12),
    "H200": (67e12, 989e12),
    "H100 NVL": (60e12, 835e12),
    "H100 PCIe": (51e12, 756e12),
    "H100": (67e12, 989e12),
    "A100": (19.5e12, 312e12),
    "V100-PCIE": (14e12, 112e12),
    "V100": (15.7e12, 125e12),
    "L40S": (91.6e12, 362e12),
    "L40": (90.5e12, 181e12),
    "L4": (30.3e12, 121e12),
    "A10G": (31.2e12, 70e12),
    "T4": (8.1e12, 65e12),
    "TITAN RTX": (16.3e12, 130.5e12),
    "RTX 4090": (82.6e12, 165e12),
    "RTX 3090": (35.6e12, 71e12),
}
NO_VNNI = (
    "this processor has neither VNNI nor AMX, which multiply 8-bit integers: int8 saves memory here, a quarter of "
    "fp32's for the weights, but little time. On a processor that has them, int8 is about twice as fast as fp32."
)
OTHER_VARIANTS = "D|Ti|SUPER|Laptop|Mobile|Max-Q|MIG"  # GPUs of the same name with other peaks, and parts of a GPU


@dataclass(frozen=True)
class Runtime:
    """Device, precision and compilation of a run."""

    device: torch.device
    precision: str = "fp32"
    compiled: bool = False

    def to_json(self) -> dict:
        return {"device": str(self.device), "precision": self.precision, "compiled": self.compiled}

    @property
    def uses_graphs(self) -> bool:
        """Whether compiled layers run as CUDA graphs, which the host starts with one call each."""
        return self.compiled and self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def cast_linears(self, model: nn.Module) -> None:
        """Casts a frozen model's matrices to this precision once; autocast would cast them at every call."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.to(PRECISIONS[self.precision])

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16 only; in every precision, it skips steps with a non-finite gradient."""
        return torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else FixedScale(self.device.type)


def choose_device(name: str) -> torch.device:
    """auto is CUDA if available, else the CPU.  Raises OptionError for a device that this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:  # its message lists every kind of device that PyTorch ever had
        raise OptionError(f"--device must be auto, cpu, cuda, cuda:1, …, not {name!r}.") from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        if is_out_of_memory(error):  # a GPU that others have filled
            raise
        where = "on this machine or in this PyTorch"
        raise OptionError(f"--device {name} is not available {where} ({first_line(error)}).") from None
    return device


def set_up_process(device: torch.device) -> None:
    """Settings of this process for training, to be made before its first product.

    CPU: freed memory is kept. GPU: operations are deterministic, so that a resumed run ends with the same bits. (With
    warn_only, attention would not be.)
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    elif device.type == "cpu":
        keep_freed_memory()


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the CPU and this device, which must have its index.

    torch.manual_seed asks for every kind of device that PyTorch knows, which takes the host a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16, fp16 or int8. auto: bf16 if the hardware supports it, else fp16 on CUDA, else fp32.

    Raises OptionError for a precision that the device does not support.
    """
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
    if name == "int8":
        if device.type != "cpu":
            raise OptionError(f"--precision int8 runs on a CPU, not on {device}. Use bf16 or fp16 there.")
        if activation_levels() < LEVELS:
            note(NO_VNNI)
        return name
    if name == "bf16" and device.type == "cuda" and not has_bf16(device):
        gpu = torch.cuda.get_device_name(device)
        raise OptionError(f"--precision bf16 is not supported by {gpu}. Use fp16 or fp32.")
    if name != "fp32":
        try:
            with torch.autocast(device.type, PRECISIONS[name]):
                ones = torch.ones(8, 8, device=device)
                torch.nn.functional.linear(ones, ones).sum().item()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise OptionError(f"--precision {name} is not supported by {device} ({first_line(error)}).") from None
    if name == "bf16" and device.type == "cpu" and not has_bf16(device):
        note("this processor emulates bf16; fp32 is faster.")
    return name


def choose_compiled(name: str, device: torch.device, worth_it: bool) -> bool:
    """Whether to use torch.compile: on, off, or auto (if worth_it, and a compiler works here). Prints the choice.

    Raises OptionError for "on" where no compiler works.
    """
    if name == "off" or (name == "auto" and not worth_it):
        print("compile   off" + (" (short run)" if name == "auto" else ""))
        return False
    try:
        with shielded():  # PyTorch's compiler starts processes that stay
            compiled = torch.compile(torch.exp, options={"triton.cudagraphs": device.type == "cuda"})
            for _ in range(3):  # the second call records a CUDA graph, the third replays it
                compiled(torch.zeros(8, device=device)).sum().item()
    except Exception as error:  # a missing or outdated compiler can raise nearly anything
        reason = first_line(error)
        if name == "on":
            raise OptionError(f"--compile on: torch.compile does not work for {device} ({reason}).") from None
        print(f"compile   off: torch.compile does not work here ({reason})")
        return False
    print("compile   on; the first step takes longer")
    return True


def prepare_models(student: MaskedLM, teacher: MaskedLM | None, runtime: Runtime) -> None:
    """Casts the teacher's matrices to the run's precision once, which autocast would do at every step; compiles.

    With CUDA graphs, each layer's are recorded in the second micro-batch and replayed from the third on. They hold the
    addresses of the weights, which must stay, and their outputs last until the next micro-batch begins, which
    torch.compiler.cudagraph_mark_step_begin says.
    """
    if teacher:
        runtime.cast_linears(teacher)
        teacher.encoder.embeddings.word.to(PRECISIONS[runtime.precision])  # also the decoder
    if runtime.compiled:
        on_cpu = runtime.device.type == "cpu"  # there PyTorch's own generator keeps dropout the same as uncompiled
        options = {"fallback_random": on_cpu, "triton.cudagraphs": runtime.uses_graphs}
        torch._dynamo.config.optimize_ddp = False  # which would split a layer where a bucket of gradients ends
        for model in filter(None, (student, teacher)):
            for layer in model.encoder.layers:  # all layers of a model share one compiled form
                layer.compile(dynamic=False, options=options)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak operations per second of a GPU by its name, None if it is not in the table.

    Names match as whole words: an L40 is not an L4, a T400 not a T4.
    """
    for name, (fp32, half) in GPU_PEAKS.items():
        if re.search(rf"\b{name}\b(?!.*\b({OTHER_VARIANTS})\b)", device_name, re.IGNORECASE):
            return fp32 if precision == "fp32" else half
    return None


def peak_tokens_per_second(runtime: Runtime, world_size: int, flops_per_token: float) -> float | None:
    """Tokens per second of all ranks at their GPUs' peak; None where the peak is unknown."""
    if runtime.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(runtime.device), runtime.precision)
    return peak and world_size * peak / flops_per_token


def training_flops(student: EncoderConfig, teacher: EncoderConfig | None, block_size: int, masked: float) -> float:
    """Operations per token of a training step's matrix products; a multiplication with its addition counts as 2.

    The student's forward pass, twice that for its backward pass, and the teacher's forward pass. With a teacher all
    tokens go through the LM heads; for masked LM alone only the masked ones do, a fraction `masked` of the tokens.
    Dropout, norms, softmaxes, the loss terms beyond the paper and the optimiser are not counted.
    """

    def forward(config: EncoderConfig, in_head: float) -> float:
        d, e = config.hidden_size, config.intermediate_size
        layer = 4 * d**2 + 2 * d * e + 2 * block_size * d  # projections, feed-forward, attention
        return 2 * (config.num_layers * layer + in_head * (d**2 + config.vocab_size * d))

    if teacher is None:
        return 3 * forward(student, masked)
    return 3 * forward(student, 1.0) + forward(teacher, 1.0)
