"""The learning rate as a pure function of the step, so that a resume needs no state."""

import math

from trainer.config import ScheduleConfig
from trainer.errors import UserError, did_you_mean


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


def check_schedule(config: ScheduleConfig, steps: int) -> None:
    """Raise UserError for a schedule that cannot be."""
    if config.kind not in ("cosine", "rsqrt"):
        raise UserError(f"schedule.kind={config.kind}: choose cosine or rsqrt{did_you_mean(config.kind, ('cosine', 'rsqrt'))}")
    if config.warmup_steps < 0 or config.cooldown_steps < 0:
        raise UserError("schedule.warmup_steps and schedule.cooldown_steps must not be negative")
    if config.timescale is not None and config.timescale < 1:
        raise UserError(f"schedule.timescale={config.timescale} must be at least 1, or null for schedule.warmup_steps")
    if not config.final_factor >= 0:
        raise UserError(f"schedule.final_factor={config.final_factor} must not be negative")
    if config.kind == "rsqrt" and config.warmup_steps + config.cooldown_steps > steps:
        raise UserError(
            f"schedule.warmup_steps={config.warmup_steps} and schedule.cooldown_steps={config.cooldown_steps} do not fit "
            f"train.steps={steps}: shorten them"
        )
