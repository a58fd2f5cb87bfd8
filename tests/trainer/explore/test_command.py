"""`python -m trainer.explore`: what it is asked, what it refuses in a line."""

import socket
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.made_checkpoints import write_run
from trainer.checkpoint import trained
from trainer.checkpoint.files import checkpoint_path
from trainer.errors import UserError
from trainer.explore.__main__ import HOST, PORT, SAMPLES, listen, main, open_explorer, read_request
from trainer.explore.answers import Explorer
from trainer.explore.server import ExplorerServer
from trainer.export.__main__ import export_newest


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "photos", [1])


def test_the_defaults_are_this_machine_alone_and_the_newest_checkpoint(run_dir: Path):
    request = read_request([str(run_dir)])
    assert (request.host, request.port, request.samples) == (HOST, PORT, SAMPLES) and request.host == "127.0.0.1"
    assert request.place == checkpoint_path(run_dir, 20)
    other = read_request([f"run={checkpoint_path(run_dir, 10)}", "--port", "0", "samples=5", "eval.batch_size=3"])
    assert (other.place.name, other.port, other.samples, other.overrides) == ("step-00000010", 0, 5, ["eval.batch_size=3"])


def test_a_run_and_its_export_say_the_same(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    export_newest([f"run={run_dir}", f"output={tmp_path / 'export'}"])
    answers = []
    for place in (run_dir, tmp_path / "export"):
        explorer = open_explorer(read_request([str(place), f"data.cache={tmp_path}", "samples=6"]))
        answers.append(explorer.words("a small set"))
    assert answers[0] == answers[1] and len(answers[0]["pictures"]) == 6
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "photos, step 20: embedding 6 images and 2 texts of data.val, once"
    assert len(told) == 3, "the second has the same weights and is read from the cache"
    with pytest.raises(UserError, match=r"weights=ema: .* is an export, which has the weights it was made of"):
        open_explorer(read_request([str(tmp_path / "export"), "weights=ema"]))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run=DIR is missing"),
        (["/nowhere"], "run=/nowhere: no complete checkpoint there"),
        (["RUN", "port=65536"], "port=65536 must be a number from 0 to 65535"),
        (["RUN", "port=http"], "port=http must be a number"),
        (["RUN", "samples=0"], "samples=0 must be a number of images, at least 1"),
        (["RUN", "prot=1"], "(did you mean 'port'?)"),
        (["RUN", "port=0", "weights=ema"], "weights=ema: "),
        (["RUN", "port=0", "model.heads=2"], "model.heads"),
        (["RUN", "port=0", "data.val=/nowhere/val.tar"], "/nowhere/val.tar"),
        (["RUN", "port=0", "data.val=null", "eval.zeroshot=null"], "nothing to explore: set data.val=SHARDS"),
        (["RUN", "port=0", "host=no-such-machine.invalid"], "cannot serve on host=no-such-machine.invalid port=0"),
    ],
)
def test_a_mistake_is_one_line(
    run_dir: Path, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["explore", *(argument.replace("RUN", str(run_dir)) for argument in arguments)])
    monkeypatch.setattr(ExplorerServer, "serve", lambda *_: pytest.fail("served"))
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert told in said and said.count("\n") == 1


def test_a_port_that_is_in_use_is_told_before_anything_is_embedded(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["explore", str(run_dir), f"port={port}"])
        monkeypatch.setattr("trainer.explore.__main__.open_explorer", lambda _: pytest.fail("opened"))
        with pytest.raises(SystemExit):
            main()
    assert f"cannot serve on host=127.0.0.1 port={port} (" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path / "photos", [1], steps=(5,))
    opened = trained.open_checkpoint

    def diverged(*asked: object) -> trained.Trained:
        found = opened(*asked)
        next(found.model.parameters()).data[:] = float("nan")
        return found

    monkeypatch.setattr(trained, "open_checkpoint", diverged)
    with pytest.raises(UserError, match="photos, step 5: its embeddings are not finite"):
        open_explorer(read_request([str(run), f"data.cache={tmp_path}"]))


def test_a_device_without_room_is_a_line(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("trainer.explore.__main__.index_gallery", full)
    with pytest.raises(UserError, match=r"too little memory: add eval.batch_size=16, or run.device=cpu"):
        open_explorer(read_request([str(run_dir)]))


def test_the_address_and_the_way_to_it_are_printed(
    run_dir: Path, explorer: Explorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    served: list[Explorer] = []
    monkeypatch.setattr(ExplorerServer, "serve", lambda _, given: served.append(given))
    monkeypatch.setattr("trainer.explore.__main__.open_explorer", lambda _: explorer)
    for host in ("127.0.0.1", "0.0.0.0"):
        monkeypatch.setattr(sys, "argv", ["explore", str(run_dir), "port=0", f"host={host}"])
        main()
    said = capsys.readouterr()
    first, second, third = said.out.splitlines()
    assert first.startswith("http://127.0.0.1:") and "ssh -L" in second and third.startswith(f"http://{socket.gethostname()}:")
    assert said.err.startswith("WARNING: host=0.0.0.0: whoever can reach this machine") and said.err.count("\n") == 1
    assert served == [explorer, explorer]


def test_listening_refuses_what_is_no_address_of_this_machine(run_dir: Path):
    with pytest.raises(UserError, match=r"host=192\.0\.2\.1"):
        listen(read_request([str(run_dir), "host=192.0.2.1", "port=0"]))
