"""What a person who watches a run sees."""

import time


def print_progress(record: dict, steps: int, time_left: float) -> None:
    """One line a logged step: the losses, the speed, the time left in seconds.

    record: a line of metrics.jsonl; its terms that are None (no teacher) are left out.
    """
    terms = "".join(
        f"  {name} {record[key]:.4f}"
        for name, key in (("soft", "soft_label_loss"), ("cos", "cosine_loss"), ("mlm", "mlm_loss"))
        if record[key] is not None
    )
    print(
        f"step {record['step']:>{len(str(steps))}}/{steps}  loss {record['loss']:.4f}{terms}  "
        f"{record['tokens_per_second']:,.0f} tokens/s  {duration(time_left)} left",
        flush=True,
    )


def duration(seconds: float) -> str:
    """19 d 03:04:05, or 03:04:05."""
    days, rest = divmod(int(seconds), 86400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days} d {clock}" if days else clock
