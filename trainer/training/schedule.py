"""The learning rate as a pure function of the step, so that a resume needs no state."""

import math

from trainer.config.schema import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate of 0-based `step` of `steps`: linear warm-up to the peak, then

    cosine: half a cosine down to `final_factor * peak`;
    rsqrt: `peak * sqrt(timescale / step)`, with a linear cool-down to zero over the last `cooldown_steps` (Zhai et al. 2022).
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.kind == "cosine":
        progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return peak * (config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
    timescale = config.timescale or max(1, config.warmup_steps)
    rate = peak * math.sqrt(timescale / (timescale + step - config.warmup_steps))
    left = (steps - step) / config.cooldown_steps if config.cooldown_steps else 1.0
    return rate * max(0.0, min(1.0, left))
