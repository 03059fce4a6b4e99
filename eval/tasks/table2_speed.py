"""The speed of a fine-tuned teacher and student, and the student in int8."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from data.tasks import Example
from model.training.device import Runtime

from .batching import infer
from .checks import share_equal
from .evaluate import InferenceOptions, open_model, predict

TIMED_TEXTS, TIMED_ROUNDS = 40, 3


def speeds(
    task_name: str, teacher: str, student: str, examples: Sequence[Example], options: InferenceOptions, seed: int = 0
) -> dict:
    """-> milliseconds of each model per text; on a CPU also student_int8, see in_int8

    teacher, student: paths of fine-tuned models; seed: of the bootstrap resamples.
    """
    models = {}
    for name, path in (("teacher", teacher), ("student", student)):
        models[name], task, runtime = open_model(path, task_name, replace(options, tokenizer=None))
    result = {}
    if runtime.device.type == "cpu":
        models["student, int8"], result["student_int8"] = in_int8(student, task_name, examples, options, seed)
    features = task.encode(examples[:TIMED_TEXTS], lambda sentence: None)
    texts = [feature.ids for feature in features[:TIMED_TEXTS]]
    return result | {"milliseconds": milliseconds(models, texts, runtime)}


def milliseconds(models: Mapping[str, nn.Module], texts: Sequence[list[int]], runtime: Runtime) -> dict[str, float]:
    """Each model's median time for one text; a text is a batch of its own, and the models alternate."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(TIMED_ROUNDS + 1):
        for name, model in models.items():
            for text in texts:
                start = time.perf_counter()
                infer(model, [text], runtime)
                if round_number:  # the first round is a warm-up
                    times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def in_int8(
    path: str, task_name: str, examples: Sequence[Example], options: InferenceOptions, seed: int
) -> tuple[nn.Module, dict]:
    """A fine-tuned model in int8 -> it, and figures on the examples, also in fp32, with the share of equal labels."""
    predictions, figures = [], {}
    for precision in ("fp32", "int8"):
        settings = replace(options, tokenizer=None, precision=precision)
        model, task, runtime = open_model(path, task_name, settings)
        predictions.append(predict(model, task, examples, runtime, options.batch_tokens))
        figures[precision] = task.metrics(predictions[-1], examples, seed)
    return model, {"figures": figures, "equal_to_fp32": share_equal(task, *predictions)}
