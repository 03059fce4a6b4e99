"""What a run knows of itself beside its weights, and how it is told of a step without waiting for a GPU."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch

from data import DataError
from losses import DistillationLoss

from .held_out import Diverged
from .processes import Processes


@dataclass
class Account:
    """What a run knows of itself beside its weights. A checkpoint holds it."""

    step: int = 0  # the last one done
    seconds: float = 0.0  # that all of them took
    since_line: float = 0.0  # of these, since the last line of metrics.jsonl
    sums: tuple[float, ...] = (0.0,) * 5  # of the losses since then, with their counts
    highest: float = 0.0  # loss of a step since then: a spike would drown in the mean
    skipped: tuple[int, ...] = ()  # steps since then without a finite gradient
    skipped_in_a_row: int = 0
    metrics_bytes: int = 0
    baseline: dict[str, float] = field(default_factory=dict)  # held-out accuracy before the first step
    best_loss: float | None = None  # on held-out text

    def new_line(self) -> None:
        """A line of metrics.jsonl was written."""
        self.sums, self.highest, self.skipped, self.since_line = (0.0,) * 5, 0.0, (), 0.0

    def as_values(self) -> dict:
        """For a checkpoint, as JSON has it: every float comes back to the last bit."""
        return {"step": self.step, "account": asdict(self)}

    @classmethod
    def of(cls, values: dict) -> "Account":
        """The same again.  Raises DataError for other values: another version's, most likely."""
        try:
            known = values["account"].items()
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"The checkpoint is of another version of this program ({error}).") from None


class Totals:
    """What is not read off the device yet, so that nothing waits for it at every step.

    Steps are added up one by one and over all processes, so that the sums and the highest loss do not depend on when
    they are settled or on who computed what.
    """

    def __init__(self, weights: Sequence[float]):
        """weights: of equation (13)."""
        self.weights = weights
        self.clear()

    def clear(self) -> None:
        self.sums: list[torch.Tensor] = []  # of each step, (5,)
        self.skipped: list[torch.Tensor] = []

    def add(self, sums: torch.Tensor, skipped: torch.Tensor) -> None:
        """A step's sums, which count if it was taken."""
        self.sums.append(torch.where(skipped, 0.0, sums))
        self.skipped.append(skipped)

    def settle(self, account: Account, max_skipped: int, processes: Processes) -> None:
        """Into the account, over all processes.  Raises Diverged after so many steps in a row without a gradient."""
        if not self.sums:
            return
        sums = processes.sum(torch.stack(self.sums).cpu())  # (steps, 5)
        account.highest = max(account.highest, *DistillationLoss(*sums.T).total(self.weights).tolist())
        flags = torch.stack(self.skipped).tolist()
        for step, (row, skipped) in enumerate(zip(sums.tolist(), flags), account.step - len(flags) + 1):
            account.sums = tuple(one + other for one, other in zip(account.sums, row))
            account.skipped_in_a_row = account.skipped_in_a_row + 1 if skipped else 0
            account.skipped += (step,) * skipped
            if account.skipped_in_a_row >= max_skipped:
                raise Diverged(f"{max_skipped} steps in a row up to step {step} had no finite gradient.")
        self.clear()
