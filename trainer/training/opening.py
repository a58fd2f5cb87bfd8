"""Everything that training needs, opened in order, and closed in reverse order however it ends."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model.freeze import freeze
from model.limoe import LIMoE
from trainer.checkpoint.load import SavedState, load_state, read_progress, resumed_kinds, trained_since
from trainer.checkpoint.progress import TrainingProgress
from trainer.checkpoint.save import Checkpointer
from trainer.checkpoint.start import Start
from trainer.config.checks import check_layout
from trainer.config.schema import Config
from trainer.data.loader import TrainingLoader
from trainer.distributed.agree import first_reads, raise_together
from trainer.distributed.peers import DistributedPeers
from trainer.distributed.processes import Processes
from trainer.distributed.signals import StopRequest
from trainer.engine.build import build_engine, start_deepspeed
from trainer.engine.ema import start_ema
from trainer.engine.state import ExpertSharding, set_optimizer_state, set_weights
from trainer.errors import UserError
from trainer.reporting.log_lines import log_to_file
from trainer.reporting.tables import facts_table
from trainer.training.changes import tell_changes
from trainer.training.directory import initial_weights, open_run_directory, write_config
from trainer.training.inputs import TrainingPairs, find_pairs, locate_data
from trainer.training.position import Position
from trainer.training.recorder import Recorder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRun:
    """What is open while a run trains. config: the run's, with data settings that name what is on disk."""

    config: Config
    processes: Processes
    stop: StopRequest
    run_dir: Path
    pairs: TrainingPairs
    peers: DistributedPeers
    progress: TrainingProgress
    engine: Any
    checkpointer: Checkpointer
    loader: TrainingLoader
    recorder: Recorder
    position: Position


@contextmanager
def open_run(config: Config, processes: Processes) -> Iterator[OpenRun]:
    """The run, open; a collective. What was opened is closed whatever fails, here or in training, and the error is passed on.

    Raises UserError for whatever is wrong with the configuration, the data or the run directory.
    """
    with ExitStack() as closing:
        yield _open(config, processes, closing)


def _open(config: Config, processes: Processes, closing: ExitStack) -> OpenRun:
    """Open everything in order; whatever must be closed is registered with `closing` as soon as it is open."""
    stop = StopRequest(announce=processes.is_first)
    check_layout(config, processes.world)
    run_dir, checkpoint = open_run_directory(config, processes)
    _open_log(run_dir, processes, closing)
    if checkpoint:
        first_reads(partial(tell_changes, config, checkpoint), processes)
    start = None if checkpoint else initial_weights(config, run_dir, processes)
    located = locate_data(config, processes)
    pairs = find_pairs(located, run_dir, processes)
    peers = start_deepspeed(processes, config.parallel.expert_parallel)
    sharding = ExpertSharding(processes, config.parallel.expert_parallel)
    progress = read_progress(checkpoint) if checkpoint else TrainingProgress(seed=config.seed)
    engine = _start_engine(located, processes, peers, sharding, progress, checkpoint, start)
    checkpointer = Checkpointer(run_dir, config.checkpoint, processes, sharding, checkpoint)
    loader = pairs.loader(processes, progress)
    closing.callback(_close, "the loader", loader.close)
    progress.streams, progress.mixture = loader.streams, loader.mixture.recorded()
    write_config(config, run_dir, processes)
    recorder = Recorder(config, run_dir, progress.step if checkpoint else None, processes)
    closing.callback(_close, "the records", recorder.close)
    return OpenRun(
        config=located,
        processes=processes,
        stop=stop,
        run_dir=run_dir,
        pairs=pairs,
        peers=peers,
        progress=progress,
        engine=engine,
        checkpointer=checkpointer,
        loader=loader,
        recorder=recorder,
        position=Position(progress.step, processes.is_first),
    )


def _open_log(run_dir: Path, processes: Processes, closing: ExitStack) -> None:
    """Have rank 0 keep its lines in train.log. A collective: what it cannot open is a UserError on every rank."""
    problem = None
    try:
        closing.enter_context(log_to_file(run_dir, processes.rank))
    except UserError as error:
        problem = str(error)
    raise_together(problem, processes)


def _start_engine(
    config: Config,
    processes: Processes,
    peers: DistributedPeers,
    sharding: ExpertSharding,
    progress: TrainingProgress,
    checkpoint: Path | None,
    start: Start | None,
) -> Any:
    """The engine of a model with the state of `checkpoint`, or the weights of `start` alone, or new ones."""
    model = freeze(LIMoE(config.model, config.router, peers).initialise(config.seed), config.train.freeze)
    state: SavedState | None = None
    if checkpoint is not None:
        state = load_state(checkpoint, model, sharding, resumed_kinds(checkpoint, config.train))
        set_weights(model, state, again=True)
        progress.trained_since = trained_since(state, progress, tell=processes.is_first)
    elif start is not None:
        start.load(model, sharding, peers)
        if processes.is_first and not start.is_as_it_was:
            facts_table(start.rows(), f"the weights of {start.checkpoint}")
    elif config.train.freeze and processes.is_first:
        _log.warning("train.freeze without init_from: what is frozen keeps its first, random values")
    engine = build_engine(config, model, processes, peers, progress.trained_since)
    if state is not None:
        set_optimizer_state(engine, state, progress.optimizer_steps)
    start_ema(engine, config.train, state, progress.step, processes)
    return engine


def _close(what: str, close: Callable[[], None]) -> None:
    """Close something. A failure is reported, but must neither hide the error that ended the run nor end a good run."""
    try:
        close()
    except Exception:
        _log.warning("%s could not be closed", what, exc_info=True)
