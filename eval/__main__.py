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

import io
import os
import sys
from functools import partial

from data import DataError, OptionError
from model import ModelError

from .held_out import Diverged


def main(arguments: list[str]) -> None:
    """Runs the command; each reads its own options, `python -m eval COMMAND --help` shows them.  Raises OptionError."""
    match arguments:
        case ["throughput", *rest]:
            from .throughput import main as command
        case ["finetune", *rest]:
            from .finetune import main as command
        case ["sentiment" | "ner" | "nli" | "qa" as task, *rest]:
            from .evaluate import main as evaluate

            command = partial(evaluate, task)
        case ["predict", *rest]:
            from .predict import main as command
        case ["zero-shot", *rest]:
            from .zero_shot import main as command
        case ["fill-mask", *rest]:
            from .fill_mask import main as command
        case ["table2", *rest]:
            from .table2 import main as command
        case ["speed", *rest]:
            from .speed import main as command
        case ["-h" | "--help", *_]:
            print(__doc__)
            return
        case _:
            raise OptionError(f"There is no command {arguments[0]}.\n\n{__doc__}" if arguments else __doc__)
    command(rest)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what is printed is French, wherever
            stream.reconfigure(encoding="utf-8")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    except (OptionError, DataError, ModelError) as error:
        print(f"python -m eval: {error}", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(f"python -m eval: {error} Try a smaller --lr, a longer --warmup, or --precision fp32.", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("\npython -m eval: interrupted.", file=sys.stderr)
        sys.exit(130)
