"""python -m eval COMMAND [OPTIONS]

commands:
  finetune TASK    a model for sentiment, ner, nli or qa, from a masked LM; with --teacher, the task is distilled too
  TASK             figures of a fine-tuned model on labelled examples: sentiment, ner, nli, qa
  predict TASK     JSON lines from a fine-tuned model for lines or JSON lines
  zero-shot        labels by an inference model that has never seen them, equation (15)
  fill-mask TEXT   what a masked LM puts in the place of <mask>
  table2           teacher and student fine-tuned on all four tasks, beside the paper's figures; a demo by itself
  speed            inference: student, teacher and transformers
  throughput       speed and memory of the training step, against the script that the paper's authors used
"""

import sys
from functools import partial

from data import OptionError
from data.cli import run_command
from model import ModelError
from model.training.state import Diverged


def main(arguments: list[str]) -> None:
    """Runs the command; each reads its own options, `python -m eval COMMAND --help` shows them.  Raises OptionError."""
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
        case ["speed", *rest]:
            from .benchmarks.speed import main as command
        case ["-h" | "--help", *_]:
            print(__doc__)
            return
        case _:
            raise OptionError(f"There is no command {arguments[0]}.\n\n{__doc__}" if arguments else __doc__)
    command(rest)


if __name__ == "__main__":
    run_command("python -m eval", partial(main, sys.argv[1:]), ModelError, Diverged)
