"""Learning-rate schedules, as Transformers defines them: the factor at optimizer step ``s`` counted from 0."""

from __future__ import annotations

import math

from loracle.spec.study import Train


def warmup_steps(train: Train, steps: int) -> int:
    """Warm-up length in optimizer steps."""
    return train.warmup_steps if train.warmup_steps is not None else math.ceil(train.warmup_ratio * steps)


def factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to 1, then ``constant``, ``linear`` to 0, or ``cosine`` to 0."""
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def learning_rates(train: Train, steps: int) -> list[float]:
    """The learning rate of every optimizer step."""
    warmup = warmup_steps(train, steps)
    return [train.learning_rate * factor(train.schedule, s, steps, warmup) for s in range(steps)]
