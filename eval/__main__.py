"""python -m eval COMMAND [OPTIONS]

commands:
  finetune TASK    a model for sentiment, ner, nli or qa, from a masked LM; with --teacher, the task is distilled too
  TASK             figures of a fine-tuned model on labelled examples: sentiment, ner, nli, qa
  throughput       speed and memory of the training step, against the script that the paper's authors used
"""

import sys
from functools import partial

from data import DataError, OptionError
from model import ModelError


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
        case ["-h" | "--help", *_]:
            print(__doc__)
            return
        case _:
            raise OptionError(f"There is no command {arguments[0]}.\n\n{__doc__}" if arguments else __doc__)
    command(rest)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OptionError, DataError, ModelError) as error:
        print(f"python -m eval: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\npython -m eval: interrupted.", file=sys.stderr)
        sys.exit(130)
