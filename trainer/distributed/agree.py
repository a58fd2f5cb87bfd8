"""A user's mistake seen by one rank ends all of them with the same line; if that rank left alone, the others would hang."""

from collections.abc import Callable
from typing import TypeVar

from trainer.distributed.processes import Processes
from trainer.errors import UserError, reason

T = TypeVar("T")


def first_reads(read: Callable[[], T], processes: Processes) -> T:
    """The (picklable) result of `read()` on rank 0, on every rank. A collective.

    Its UserError is raised on every rank, and an OSError is raised as a UserError.
    """
    value: T | None = None
    problem: str | None = None
    if processes.is_first:
        try:
            value = read()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            where = f"{error.filename} cannot be used ({reason(error)})" if error.filename else str(error)
            problem = f"{where}: fix this, then run the same command again"
    value, problem = processes.from_first((value, problem))
    if problem is not None:
        raise UserError(problem)
    return value  # type: ignore[return-value]  # rank 0's, which is a T if it had no problem


def raise_together(problem: str | None, processes: Processes) -> None:
    """Raise UserError on every rank when any rank has a problem: the line of the lowest such rank. A collective."""
    if processes.any(problem is not None):
        raise UserError(next(line for line in processes.gather_objects(problem) if line is not None))
