"""What a run asks its people to look at: a list of rules over the metrics that are recorded anyway."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.config.schema import AlertsConfig

Metrics = Mapping[str, float]
Values = Callable[[Metrics, Metrics], Mapping[str, float]]
RANKS = "perf/ranks"
ROUTING_HELP = "see 'When routing goes wrong' in docs/routing.md"


@dataclass(frozen=True)
class Alert:
    """A title, below 64 characters as W&B wants it, and a line of text."""

    title: str
    text: str


@dataclass(frozen=True)
class Rule:
    """Something that asks for attention.

    limit: the key of `log.alerts` that has the limit. values: what is looked at, by subject (a modality, say, or "" if there is
    only one), from a record and from the last value of each metric before it. is_bad: whether such a value (the first argument)
    is beyond the limit. says: the line for a subject, its value, and the record. lasts: whether it takes log.alerts.records of
    them in a row, or one. in_warm_up: whether the steps count in which the learning rate still rises.
    """

    title: str
    limit: str
    values: Values
    is_bad: Callable[[float, float], bool]
    says: Callable[[str, float, Metrics], str]
    lasts: bool = True
    in_warm_up: bool = True


def named(pattern: str) -> Values:
    """The metrics of these names; what the pattern's groups match is the subject."""
    whole = re.compile(pattern)

    def values(metrics: Metrics, _: Metrics) -> dict[str, float]:
        found = {name: match for name in metrics if (match := whole.fullmatch(name))}
        return {"".join(match.groups()): metrics[name] for name, match in found.items()}

    return values


def ratio(part: str, whole: str) -> Values:
    """One metric over another, where a record has both."""
    return lambda metrics, _: {"": metrics[part] / metrics[whole]} if part in metrics and metrics.get(whole) else {}


def increase(name: str) -> Values:
    """By how much a metric that counts has grown; nothing for the first record, as what was before a resume is not known."""
    return lambda metrics, before: {"": metrics[name] - before[name]} if name in metrics and name in before else {}


def lag(metrics: Metrics, _: Metrics) -> dict[str, float]:
    """By what ranks spend their own time on: how much more of it the slowest takes than the quickest, as a share of a step."""
    step = metrics.get("perf/step_seconds")
    slowest = named(rf"{RANKS}/(\w+)/max")(metrics, {})
    return {spent: (most - metrics[f"{RANKS}/{spent}/min"]) / step for spent, most in slowest.items()} if step else {}


def _slow_rank(spent: str, share: float, metrics: Metrics) -> str:
    rank = metrics[f"{RANKS}/{spent}/worst_rank"]
    what = {"data_seconds": "waits for its data", "compute_seconds": "computes"}.get(spent, spent)
    return f"the others wait for rank {rank:.0f}, which {what} longer than the quickest by {share:.0%} of a step"


RULES = (
    Rule(
        "Tokens find no slot",
        "success",
        named(r"routing/success/(\w+)"),
        operator.lt,
        lambda modality, share, _: f"only {share:.0%} of the {modality} tokens get a slot in an expert: {ROUTING_HELP}",
        in_warm_up=False,
    ),
    Rule(
        "Experts are dead",
        "dead_experts",
        named("routing/dead_experts"),
        operator.ge,
        lambda _, experts, __: f"hardly any token wants {experts:.0f} of the experts: {ROUTING_HELP}",
        in_warm_up=False,
    ),
    Rule(
        "Steps are skipped",
        "skipped_steps",
        increase("train/skipped_steps"),
        operator.ge,
        lambda _, steps, __: (
            f"{steps:.0f} skipped since the last record, as their gradient was not finite: if it goes on, lower optim.lr or "
            "lengthen schedule.warmup_steps"
        ),
        lasts=False,
    ),
    Rule(
        "Training waits for data",
        "data_share",
        ratio("perf/data_seconds", "perf/step_seconds"),
        operator.gt,
        lambda _, share, __: f"for {share:.0%} of a step: raise data.workers, or read from a faster disk",
    ),
    Rule("A rank is slow", "straggler", lag, operator.gt, _slow_rank),
)


@dataclass
class _Episode:
    """Of one subject of a rule. bad, good: records in a row, up to now."""

    bad: int = 0
    good: int = 0
    is_told: bool = False


class Alerts:
    """Watches the records of a run. Each alert is raised once an episode, however long that lasts."""

    def __init__(self, config: AlertsConfig, warmup_steps: int) -> None:
        self._config, self._warmup_steps = config, warmup_steps
        self._before: dict[str, float] = {}
        self._episodes: dict[tuple[str, str], _Episode] = {}

    def look(self, step: int, metrics: Metrics) -> list[Alert]:
        """The alerts that a record raises."""
        raised = []
        for rule in RULES:
            limit = getattr(self._config, rule.limit)
            if limit is None or not (rule.in_warm_up or step > self._warmup_steps):
                continue
            for subject, value in rule.values(metrics, self._before).items():
                if self._begins(rule, subject, rule.is_bad(value, limit)):
                    raised.append(Alert(rule.title, f"step {step}: {rule.says(subject, value, metrics)}"))
        self._before.update(metrics)
        return raised

    def _begins(self, rule: Rule, subject: str, is_bad: bool) -> bool:
        """Count a record; whether an episode begins with it. As many good records as begin a lasting one end any."""
        episode = self._episodes.setdefault((rule.title, subject), _Episode())
        episode.bad, episode.good = (episode.bad + 1, 0) if is_bad else (0, episode.good + 1)
        if episode.good >= self._config.records:
            episode.is_told = False
        if episode.is_told or episode.bad < (self._config.records if rule.lasts else 1):
            return False
        episode.is_told = True
        return True
