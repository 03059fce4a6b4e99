"""The training state stored in each checkpoint, and the losses of recent steps that are still on the device."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import torch

from data.cli import DataError
from losses import DistillationLoss
from losses.distillation import at_least_1

from .distributed import World


class Diverged(ArithmeticError):
    """A model or its loss is no longer finite."""

    exit_status = 3

    def __init__(self, what: str):
        super().__init__(f"{what} Try a smaller --lr, a longer --warmup, or --precision fp32.")


@dataclass
class TrainState:
    """The training state stored in each checkpoint, beside the weights and the optimiser."""

    step: int = 0  # the last completed step
    seconds: float = 0.0  # of all steps
    since_line: float = 0.0  # seconds since the last line of metrics.jsonl
    sums: tuple[float, ...] = (0.0,) * 5  # of the losses since that line, with their counts
    highest: float = 0.0  # highest loss of a step since that line: the mean would hide a spike
    skipped: tuple[int, ...] = ()  # steps since that line that were skipped for a non-finite gradient
    skipped_in_a_row: int = 0
    metrics_bytes: int = 0  # length of metrics.jsonl
    baseline: dict[str, float] = field(default_factory=dict)  # validation accuracy before the first step
    best_loss: float | None = None  # lowest validation loss
    best_step: int = 0  # its step
    validation_seconds: float = 0.0  # of the last validation
    schedules: tuple[int, ...] = ()  # --steps; before it, those of a run that was extended

    def add_seconds(self, seconds: float) -> None:
        self.since_line += seconds
        self.seconds += seconds

    def new_line(self) -> None:
        """Starts the sums again after a line of metrics.jsonl."""
        self.sums, self.highest, self.skipped, self.since_line = (0.0,) * 5, 0.0, (), 0.0

    def to_json(self) -> dict:
        """For a checkpoint. JSON restores every float to the last bit."""
        return {"step": self.step, "train_state": asdict(self)}

    @classmethod
    def from_json(cls, values: dict) -> "TrainState":
        """Raises DataError for values of another version of this program."""
        try:
            stored = values["train_state"].items()
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"The checkpoint was written by another version of this program ({error}).") from None


def means_and_total(sums: Sequence[torch.Tensor], weights: Sequence[float]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """-> the mean of each term, those of equations (10) to (12) first, and the total that a run minimises.

    sums: those of DistillationLoss, then those of the terms beyond the paper if these are used; weights: of all terms.
    """
    loss, extra = DistillationLoss(*sums[:5]), sums[5:]
    extra_means = [each / at_least_1(loss.real_tokens) for each in extra]
    total = loss.total(weights[:3]) + sum(weight * mean for weight, mean in zip(weights[3:], extra_means))
    return [*loss.means(), *extra_means], total


class PendingLosses:
    """The losses of recent steps, kept on the device until a step is logged, so that the host need not wait for it.

    They are summed step by step and over all ranks, so the result depends neither on when they are read nor on
    which rank computed what.
    """

    def __init__(self, weights: Sequence[float]):
        """weights: of equation (13), and of the terms beyond the paper if there are any."""
        self.weights = weights
        self.clear()

    def clear(self) -> None:
        self.sums: list[torch.Tensor] = []  # one (5,) per step, or (7,)
        self.skipped: list[torch.Tensor] = []

    def add(self, sums: torch.Tensor, skipped: torch.Tensor) -> None:
        """sums: of one step, as `train.backward` returns them; they count unless the step was skipped."""
        self.sums.append(torch.where(skipped, 0.0, sums))
        self.skipped.append(skipped)

    def read_into(self, state: TrainState, max_skipped: int, world: World) -> None:
        """Adds them to the state, over all ranks.  Raises Diverged after max_skipped skipped steps in a row."""
        if not self.sums:
            return
        sums = world.sum(torch.stack(self.sums).cpu())  # (steps, 5) or (steps, 7)
        state.highest = max(state.highest, *means_and_total(sums.T, self.weights)[1].tolist())
        flags = torch.stack(self.skipped).tolist()
        for step, (row, skipped) in enumerate(zip(sums.tolist(), flags), state.step - len(flags) + 1):
            state.sums = tuple(one + other for one, other in zip_longest(state.sums, row, fillvalue=0.0))
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
            state.skipped += (step,) * skipped
            if state.skipped_in_a_row >= max_skipped:
                raise Diverged(f"{max_skipped} steps in a row, up to step {step}, had a non-finite gradient.")
        self.clear()
