"""A page that shows how a trained model routes any picture and any words: `python -m trainer.explore run=DIR`."""

import ipaddress
import logging
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from model.paths import user_path
from trainer.checkpoint.load import WEIGHTS_ARGUMENT, take_newest
from trainer.checkpoint.trained import open_trained, place_of
from trainer.config.arguments import Argument, Command
from trainer.distributed.processes import ALONE
from trainer.distributed.program import exit_with
from trainer.engine.state import WEIGHTS
from trainer.errors import UserError, reason
from trainer.explore.answers import Explorer
from trainer.explore.gallery import read_gallery
from trainer.explore.index import index_gallery
from trainer.explore.server import ExplorerServer, is_address
from trainer.output import reader_may_leave
from trainer.reporting.log_lines import log_to_terminal
from trainer.training.inputs import locate_data

HOST = "127.0.0.1"
PORT = 8642
SAMPLES = 1024
COMMAND = Command(
    "trainer.explore",
    "Serve a page on this machine that shows, for any picture or words: the nearest pictures and captions of the run's "
    "evaluation set, the expert that took each patch and word, layer by layer, and what else that expert takes. One process.",
    (
        Argument(
            "run",
            "DIR",
            "a run directory (its newest checkpoint), a checkpoint of one, or an export (also hf://OWNER/NAME)",
            required=True,
        ),
        Argument("samples", "N", f"images of the evaluation set to look among (default: {SAMPLES})"),
        Argument("port", "N", f"the page's port; 0 for any free one (default: {PORT})"),
        Argument("host", "ADDRESS", f"the address to serve on (default: {HOST}, which only this machine can reach)"),
        WEIGHTS_ARGUMENT,
    ),
    overrides="set a key of the run's own configuration, such as data.val=SHARDS, eval.batch_size=16 or run.device=cpu",
    word="run",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What a command line asks for. place: a checkpoint or an export; overrides: of its configuration."""

    place: Path
    kind: str
    samples: int
    host: str
    port: int
    overrides: list[str]


def read_request(arguments: list[str]) -> Request:
    """What a command line means. Raises UserError for what is missing or mistyped, and for a place without a model."""
    given = COMMAND.read(arguments)
    values = given.values
    samples, port = values.get("samples", str(SAMPLES)), values.get("port", str(PORT))
    if not (samples.isdecimal() and int(samples) > 0):
        raise UserError(f"samples={samples} must be a number of images, at least 1")
    if not (port.isdecimal() and int(port) < 2**16):
        raise UserError(f"port={port} must be a number from 0 to {2**16 - 1}; 0 is any free one")
    place = place_of(values["run"])
    return Request(place, values.get("weights", WEIGHTS), int(samples), values.get("host", HOST), int(port), given.overrides)


def open_explorer(request: Request) -> Explorer:
    """The model with its gallery, embedded. Raises UserError for what cannot be opened or read, or is too large."""
    try:
        return _opened(request)
    except torch.OutOfMemoryError as problem:
        raise UserError("the device has too little memory: add eval.batch_size=16, or run.device=cpu") from problem


def _opened(request: Request) -> Explorer:
    trained = open_trained(request.place, request.kind, request.overrides)
    config = locate_data(trained.config, ALONE)
    gallery = read_gallery(config, request.samples)
    count = f"{len(gallery.ids)} images and {len(gallery.texts)} texts of {gallery.what}"
    began = time.monotonic()

    def told() -> None:
        _say(f"{trained.name}: embedding {count}, once")

    index = index_gallery(trained, gallery, user_path(config.data.cache, "data.cache") / "explore", told)
    if not (index.images_nd.isfinite().all() and index.texts_td.isfinite().all()):
        raise UserError(f"{trained.name}: its embeddings are not finite, so the run has diverged; give an earlier checkpoint")
    _say(f"{trained.name}: {count}, ready after {time.monotonic() - began:.1f} s")
    return Explorer(trained, gallery, index)


def listen(request: Request) -> ExplorerServer:
    """Take the address, before anything that takes long. Raises UserError for one that cannot be used."""
    try:
        return ExplorerServer(request.host, request.port)
    except OSError as problem:
        raise UserError(
            f"cannot serve on host={request.host} port={request.port} ({reason(problem)}): port=0 chooses a free one"
        ) from problem


def tell_address(server: ExplorerServer) -> None:
    """Print where the page is, and how it is reached from elsewhere."""
    _say(f"{server.url}   (Ctrl-C ends it)")
    if _is_private(server.host):
        port = server.server_address[1]
        _say(f"from another machine: ssh -L {port}:{server.host}:{port} {socket.gethostname()}, then the same address there")
    else:
        _log.warning("host=%s: whoever can reach this machine sees the evaluation set and can use the model", server.host)


def _is_private(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host == "localhost"


def _say(line: str) -> None:
    with reader_may_leave():
        print(line, flush=True)


def main() -> None:
    """Read the command line, embed the evaluation set, and serve the page."""
    arguments = sys.argv[1:]
    log_to_terminal(rank=0)
    try:
        with listen(take_newest(lambda: read_request(arguments), lambda asked: asked)) as server:
            # Read again: a checkpoint is chosen once more if its run deletes it meanwhile.
            explorer = take_newest(lambda: read_request(arguments), open_explorer)
            tell_address(server)
            server.serve(explorer)
    except UserError as problem:
        exit_with(problem)
    except KeyboardInterrupt:
        _say("")


if __name__ == "__main__":
    main()
