"""Training shards from what people have: `python -m trainer.shards PLACE output=DIR [val=0.01] [short_side=256] …`."""

import multiprocessing
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from trainer.distributed.program import exit_with
from trainer.distributed.signals import exit_code
from trainer.errors import UserError, reason
from trainer.output import reader_may_leave
from trainer.reporting.log_lines import log_to_terminal
from trainer.shards.dry import look
from trainer.shards.manifest import is_finished, read_finished, write_manifest
from trainer.shards.pack import pack
from trainer.shards.place import Place, take_place
from trainer.shards.plan import TRAIN, Plan, is_planned, make_plan
from trainer.shards.progress import Bar, Search
from trainer.shards.request import Request, read_arguments
from trainer.shards.source import Source
from trainer.shards.told import summary, training_command
from trainer.shards.work import Work

STOPS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """By a signal, from anywhere in the program."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def write_shards(request: Request) -> list[str]:
    """Write what is asked for, as far as it is not there; what there is then, in lines. Raises UserError."""
    place = take_place(request.output, request.settings)
    if not is_finished(place.folder):
        try:
            _write(request, place)
        except UserError:
            if not place.records().pairs:
                place.leave()
            raise
        except OSError as problem:
            raise UserError(
                f"output={place.folder}: {reason(problem)}; what is finished stays, and the same command goes on from there"
            ) from problem
    else:
        _say("complete already: nothing to do")
    place.clean()
    finished = read_finished(place.folder)
    command = training_command(place.folder, finished)
    return [*summary(place.folder, finished, request.wish.short_side), "train with", f"  {command}"]


def _write(request: Request, place: Place) -> None:
    source = request.open_source(place.work)
    plan = _planned(source, request, place.work)
    records = place.records()
    before = len(records.bad) + records.pairs
    if before:
        _say(f"going on after {before:,} of {len(plan):,} samples")
    shards = request.shards(len(plan))
    with Bar(len(plan), before) as bar:
        pack(Work(source, plan, request.wish), records, shards, request.workers, bar, shuffled=request.order.seed is not None)
    write_manifest(place.folder, request.settings, records, plan.left_out())


def _planned(source: Source, request: Request, work: Path) -> Plan:
    """What is to be written, found now or before the writer was stopped."""
    if is_planned(work):
        return Plan(work)
    _say(f"looking for {source.told}")
    plan = make_plan(source, request.order, work, Search())
    if not len(plan):
        bad = plan.left_out()
        why = f"; {bad[0].key}: {bad[0].why}" if bad else ""
        raise UserError(f"input={request.input}: no samples in it{why}")
    if TRAIN not in plan.parts:
        raise UserError(f"val={request.order.val:g} leaves nothing to train on: there are {len(plan):,} samples")
    return plan


def look_only(request: Request) -> list[str]:
    """What would be written, in lines. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="limoe-shards-") as folder:
        source = request.open_source(Path(folder))
        plan = _planned(source, request, Path(folder))
        return look(Work(source, plan, request.wish), request.shards(len(plan)), request.workers)


def _say(line: str) -> None:
    with reader_may_leave():
        print(line, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    """End the workers, even those that wait for a disk, and leave: what they were at is done again by the next writer."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    for worker in multiprocessing.active_children():
        worker.kill()
    raise Stopped(number)


def main() -> None:
    """Read the command line and write the shards."""
    log_to_terminal(rank=0)
    for number in STOPS:
        signal.signal(number, _stop)
    try:
        request = read_arguments(sys.argv[1:])
        told = look_only(request) if request.dry else write_shards(request)
    except UserError as problem:
        exit_with(problem)
    except Stopped as problem:
        print("stopped: the same command goes on where this one was", file=sys.stderr, flush=True)
        sys.exit(exit_code(problem.number))
    with reader_may_leave():
        print("\n".join(told))


if __name__ == "__main__":
    main()
