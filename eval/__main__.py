"""usage: python -m eval COMMAND [OPTIONS]

Evaluation, section 4 of the paper. The tasks are sentiment, ner, nli and qa.

commands:
  finetune TASK    fine-tune a masked LM on a task, optionally distilling a teacher that is fine-tuned on it
  TASK             evaluate a fine-tuned model on labelled examples
  predict TASK     predictions of a fine-tuned model, from lines of text or JSON to JSON lines
  zero-shot        classify texts by labels that an NLI model was not trained on, equation (15)
  fill-mask TEXT   the most likely tokens for each <mask>
  table2           fine-tune teacher and student on all tasks and compare them as in the paper's Table 2
  reproduce        the whole paper: teacher, distillation and its variants, the four tasks, a report with pictures
  compare RUN RUN… two or more students or fine-tuned models on the same data: figures, intervals, options that differ
  runs FOLDER      a table of the runs below a folder: state, figures, last change, size
  speed            inference speed of student, teacher and their transformers versions
  attention        what attention of packed sequences costs on this CPU, for the choice of model/runs.py
  throughput       speed and memory of the training step, compared with the DistilBERT script's
  gpu              all of it on a GPU in under ten minutes: correctness, accuracy, speed, memory, a profile

python -m eval COMMAND --help lists the options. table2 without options runs on an embedded demo.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for a CPU's large tensors; read when torch is imported

import re
import sys
from functools import partial

from data.cli import OptionError, did_you_mean, run_command
from data.tasks import TASKS
from data.versions import version_line
from model import ModelError
from model.training.state import Diverged

ON_MEMORY = "Use smaller batches (--batch-tokens, --step-tokens or --batch-size), if this command has them."


def main(arguments: list[str]) -> int | None:
    """Runs a command with the rest of the arguments -> its exit status.  Raises OptionError for an unknown command."""
    match arguments:
        case ["throughput", *rest]:
            from .benchmarks.throughput import main as command
        case ["finetune", *rest]:
            from .tasks.finetune import main as command
        case ["sentiment" | "ner" | "nli" | "qa" as task, *rest]:
            from .tasks.evaluate import main as evaluate

            command = partial(evaluate, task)
        case ["predict", *rest]:
            from .tasks.predict import main as command
        case ["zero-shot", *rest]:
            from .tasks.zero_shot import main as command
        case ["fill-mask", *rest]:
            from .tasks.fill_mask import main as command
        case ["table2", *rest]:
            from .tasks.table2 import main as command
        case ["reproduce", *rest]:
            from .reproduce.command import main as command
        case ["compare", *rest]:
            from .tasks.compare import main as command
        case ["runs", *rest]:
            from .tasks.runs import main as command
        case ["speed", *rest]:
            from .benchmarks.speed import main as command
        case ["attention", *rest]:
            from .benchmarks.attention import main as command
        case ["gpu", *rest]:
            from .benchmarks.gpu.command import main as command
        case ["-h" | "--help", *_]:
            print(__doc__)
            return 0
        case ["--version", *_]:
            print(version_line())
            return 0
        case [word, *_]:
            commands = re.findall(r"^  ([a-z][\w-]+) ", __doc__, re.MULTILINE)
            meant = did_you_mean(word, [*commands, *TASKS])
            raise OptionError(f"There is no command {word}.{meant}" + f"\n\n{__doc__}" * (not meant))
        case _:
            raise OptionError(__doc__)
    return command(rest)


if __name__ == "__main__":
    run_command("python -m eval", partial(main, sys.argv[1:]), ModelError, Diverged, on_memory=ON_MEMORY)
