"""What `speed.py` measures: this project, transformers and ONNX Runtime on the same texts, each row in its own process.

All compute the last hidden state of every token. This project runs a frozen encoder without padding; transformers a
CamembertModel with PyTorch's scaled dot-product attention, its fastest, wholly in the precision; ONNX Runtime the graph
that `convert_weights.py --to onnx` writes, in int8 as its own quantize_dynamic converts it.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.cli import note
from data.features import budget_batches
from model import Encoder, EncoderConfig, encode_packed, load_model, save_model
from model.checkpoints.export import huggingface_config, to_huggingface
from model.checkpoints.load import load_checkpoint
from model.checkpoints.native import load_int8
from model.checkpoints.onnx import write_onnx
from model.inference import PRECISIONS, freeze
from model.training.device import Runtime

from .harness import HUGE_PAGES, Job, Run, configs

TEACHER, STUDENT, TRANSFORMERS, ONNX = "teacher", "student", "transformers' student", "ONNX Runtime"
BATCH, SMALL_BATCH = 32, 8  # lines per batch of transformers and ONNX Runtime
REPEATS = 20  # runs of the sentence whose latency is measured per round, so that a round is long enough to be timed
TRANSFORMERS_WAYS = f"batches of {BATCH} as given", f"batches of {BATCH} sorted by length", "one by one"
ONNX_WAYS = f"batches of {SMALL_BATCH} sorted by length", f"batches of {BATCH} sorted by length", "one by one"
SLOWER_FUSION = "SkipLayerNormFusion"  # ONNX Runtime is faster without it
Texts = Sequence[Sequence[int]]  # token ids
Files = dict[str, dict[str, Path]]  # precision -> row -> the file that it loads


# ---- models ------------------------------------------------------------------------------------------------------


def load_encoder(path: str | None, config: EncoderConfig, report: Callable[[str], None] = note) -> Encoder:
    """The encoder in the file, or a random one, for inference.  Raises ModelError."""
    model = Encoder(config) if path is None else load_checkpoint(path, report, kind=Encoder).float()
    return model.eval().requires_grad_(False)


def frozen(student: Encoder, precision: str) -> Encoder:
    """A copy for inference.  Raises ModelError for a precision that its device lacks."""
    encoder = copy.deepcopy(student)
    freeze(encoder, precision)
    return encoder


def transformers_model(encoder: Encoder) -> nn.Module:
    """The same encoder in transformers.  Raises ImportError without transformers."""
    from transformers import CamembertConfig, CamembertModel

    config = CamembertConfig(**huggingface_config(encoder), attn_implementation="sdpa")
    model = CamembertModel(config, add_pooling_layer=False)
    model.load_state_dict(to_huggingface(encoder))
    return model.eval().requires_grad_(False)


def missing_for_onnx() -> list[str]:
    """The packages that rows of ONNX Runtime need and that are not installed."""
    return [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]


def write_graphs(student: Encoder, folder: Path, precisions: Iterable[str]) -> Files:
    """Writes the student for ONNX Runtime, in float32 and as its users quantise it -> the files of its rows."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = folder / "fp32.onnx"
    write_onnx(student, graph)
    files = {"fp32": {f"{ONNX} fp32": graph}}
    if "int8" in precisions:
        files["int8"] = {}
        for per_channel, scales in ((True, "channel"), (False, "tensor")):
            path = folder / f"int8-{scales}.onnx"
            logging.disable(logging.WARNING)  # it advises a pre-processing, which changes nothing here
            quantize_dynamic(graph, path, weight_type=QuantType.QInt8, per_channel=per_channel)
            logging.disable(logging.NOTSET)
            files["int8"][f"{ONNX} int8, scales per {scales}"] = path
    return files


def open_session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOWER_FUSION]
    )


def write_student(student: Encoder, path: Path, precision: str) -> None:
    """The student's weight file in a precision."""
    if precision == "int8":
        save_model(student, path, int8=True)
    else:
        encoder = Encoder(student.config)
        encoder.load_state_dict(student.state_dict())
        save_model(encoder.to(PRECISIONS[precision]), path)


def read_student(path: Path, precision: str, device: torch.device) -> Encoder:
    """The frozen student from the file of write_student, in int8 without a copy of its matrices in float."""
    if precision == "int8":
        return load_int8(path)
    encoder = load_model(path).to(device)
    freeze(encoder, precision)
    return encoder


# ---- hidden states -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def hidden_states(encoder: Encoder, texts: Texts, device: torch.device, budget: int) -> list[Tensor]:
    """The last hidden state of each text, (n, d_h), batched as `infer` does: without padding, sorted by length."""
    states: dict[int, Tensor] = {}
    for batch in budget_batches([len(ids) for ids in texts], budget):
        input_ids = torch.tensor(list(chain.from_iterable(texts[i] for i in batch))).to(device)
        seqlens = [len(texts[i]) for i in batch]
        hidden = encode_packed(encoder, input_ids, seqlens)  # (T, d_h)
        states.update(zip(batch, hidden.split(seqlens)))
    return [states[i] for i in range(len(texts))]


def padded(texts: Texts, pad_id: int) -> list[list[int]]:
    longest = max(map(len, texts))
    return [[*ids, *[pad_id] * (longest - len(ids))] for ids in texts]


@torch.inference_mode()
def transformers_states(
    model: nn.Module, texts: Texts, device: torch.device, batches: Iterable[Sequence[int]]
) -> list[Tensor]:
    """The same with transformers, each batch padded to its longest text; a mask only if there is padding."""
    states: dict[int, Tensor] = {}
    pad_id = model.config.pad_token_id
    for batch in batches:
        input_ids = torch.tensor(padded([texts[i] for i in batch], pad_id)).to(device)
        mask = input_ids != pad_id
        hidden = model(input_ids=input_ids, attention_mask=None if mask.all() else mask.long()).last_hidden_state
        states.update((i, row[: len(texts[i])]) for i, row in zip(batch, hidden))  # of (B, n, d_h)
    return [states[i] for i in range(len(texts))]


def onnx_states(session, texts: Texts, pad_id: int, batches: Iterable[Sequence[int]]) -> list[Tensor]:
    """The same with ONNX Runtime."""
    states: dict[int, Tensor] = {}
    for batch in batches:
        input_ids = np.array(padded([texts[i] for i in batch], pad_id))
        inputs = {"input_ids": input_ids, "attention_mask": (input_ids != pad_id).astype(np.int64)}
        (hidden,) = session.run(None, inputs)  # (B, n, d_h)
        states.update((i, torch.from_numpy(row[: len(texts[i])])) for i, row in zip(batch, hidden))
    return [states[i] for i in range(len(texts))]


def batching_strategies(lengths: Sequence[int]) -> dict[str, list[list[int]]]:
    """Batches of texts of these lengths, as indices, in the ways that are usual with transformers and ONNX Runtime."""
    given = list(range(len(lengths)))
    by_length = sorted(given, key=lengths.__getitem__)

    def batches(order: list[int], size: int) -> list[list[int]]:
        return [order[start : start + size] for start in range(0, len(order), size)]

    return {
        f"batches of {BATCH} as given": batches(given, BATCH),
        f"batches of {SMALL_BATCH} sorted by length": batches(by_length, SMALL_BATCH),
        f"batches of {BATCH} sorted by length": batches(by_length, BATCH),
        "one by one": batches(given, 1),
    }


# ---- rows --------------------------------------------------------------------------------------------------------


def repeat(compute_states: Callable[[], list[Tensor]], times: int) -> None:
    """Runs the function several times, and each time waits for its last number."""
    for _ in range(times):
        compute_states()[-1][-1, -1].item()


def project_row(options, runtime: Runtime, name: str, texts: Texts, times: int) -> Run:
    """The teacher or the student in this project, frozen in the precision."""
    student, teacher = configs(options.small)
    path, config = (options.teacher, teacher) if name == TEACHER else (options.student, student)
    encoder = load_encoder(path, config, lambda line: None).to(runtime.device)
    freeze(encoder, runtime.precision)
    return partial(repeat, partial(hidden_states, encoder, texts, runtime.device, options.batch_tokens), times)


def transformers_row(options, runtime: Runtime, texts: Texts, batches: list[list[int]], times: int) -> Run:
    """The student in transformers, wholly in the precision: autocast would cast its weights at every call."""
    encoder = load_encoder(options.student, configs(options.small)[0], lambda line: None)
    model = transformers_model(encoder).to(runtime.device, PRECISIONS[runtime.precision])
    return partial(repeat, partial(transformers_states, model, texts, runtime.device, batches), times)


def onnx_row(
    options, runtime: Runtime, path: Path, pad_id: int, texts: Texts, batches: list[list[int]], times: int
) -> Run:
    """The student in ONNX Runtime, from its file."""
    return partial(repeat, partial(onnx_states, open_session(path), texts, pad_id, batches), times)


def jobs_of(
    part: str, texts: Texts, precision: str, with_transformers: bool, graphs: dict[str, Path], pad_id: int
) -> list[Job]:
    """The rows of a part in a precision.  graphs: the files of ONNX Runtime's rows"""
    times = REPEATS if part == "latency" else 1
    jobs = [Job(name, project_row, precision, (name, texts, times), HUGE_PAGES) for name in (TEACHER, STUDENT)]
    strategies = batching_strategies([len(ids) for ids in texts])

    def ways(name: str, usual: Sequence[str]) -> dict[str, list[list[int]]]:
        """Names of rows with their batches."""
        if part != "mixed":
            return {name: [[*range(len(texts))]]}
        return {f"{name}, {way}": strategies[way] for way in usual}

    if with_transformers and precision != "int8":
        for name, batches in ways(TRANSFORMERS, TRANSFORMERS_WAYS).items():
            jobs.append(Job(name, transformers_row, precision, (texts, batches, times)))
    for graph, path in graphs.items():
        for name, batches in ways(graph, ONNX_WAYS).items():
            jobs.append(Job(name, onnx_row, precision, (path, pad_id, texts, batches, times)))
    return jobs


# ---- memory ------------------------------------------------------------------------------------------------------


def project_memory(options, runtime: Runtime, path: Path, texts: Texts) -> Run:
    """The first run loads the student's file; each run reads the texts one at a time."""
    from ..tasks import predict  # noqa: F401  what `eval predict` has imported before it opens its model

    read = cache(partial(read_student, path, runtime.precision, runtime.device))
    return lambda: [hidden_states(read(), [ids], runtime.device, options.batch_tokens) for ids in texts]


def onnx_memory(options, runtime: Runtime, path: Path, pad_id: int, texts: Texts) -> Run:
    """The same with ONNX Runtime."""
    import onnxruntime  # noqa: F401  not counted, as the imports of this project are not

    read = cache(partial(open_session, path))
    return lambda: [onnx_states(read(), [ids], pad_id, [[0]]) for ids in texts]


def memory_jobs(folder: Path, student: Encoder, texts: Texts, precision: str, graphs: dict[str, Path]) -> list[Job]:
    """The rows of the memory part in a precision.  folder: for the weight files, which it writes"""
    path = folder / f"{precision}.safetensors"
    write_student(student, path, precision)
    jobs = [Job(STUDENT, project_memory, precision, (path, texts), HUGE_PAGES)]
    pad_id = student.config.pad_id
    return jobs + [Job(name, onnx_memory, precision, (graph, pad_id, texts)) for name, graph in graphs.items()]
