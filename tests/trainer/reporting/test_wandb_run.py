"""Weights & Biases, without a network."""

import fcntl
import http.server
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from tests.trainer.reporting.wandb_records import last_summary, recorded, records
from trainer.config.schema import LogConfig
from trainer.errors import UserError
from trainer.reporting.alerts import Alert
from trainer.reporting.example_tables import ExampleTable
from trainer.reporting.leet import FIRST_PAGE, leet_command
from trainer.reporting.wandb_media import wandb_tables
from trainer.reporting.wandb_run import Nodes, WandbRun

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path, monkeypatch):
    """A home without credentials, and a wandb that has read nothing yet."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_DIR", *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def run_dir(tmp_path) -> Path:
    path = tmp_path / "a run"
    path.mkdir()
    return path


@pytest.fixture
def refusing_server():
    """The address of a server that can be reached and refuses every key."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(401)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def start(run_dir: Path, mode: str) -> WandbRun:
    return WandbRun.start(LogConfig(wandb=mode), run_dir, "demo", {"train": {"steps": 3}})


def test_an_offline_run_is_written_into_the_run_directory_in_silence(run_dir, capfd):
    run = start(run_dir, "offline")
    assert run.mode == "offline"
    run.log(1, {"train/loss": 3.25})
    run.log(2, {"train/loss": 3.0})
    run.finish()
    assert capfd.readouterr() == ("", "")
    assert len(list(run_dir.glob("wandb/offline-run-*/*.wandb"))) == 1
    text = recorded(run_dir)
    assert "train/loss" in text
    assert "3.25" in text


def test_a_resume_keeps_the_id_and_the_steps_that_come_again(run_dir):
    first = start(run_dir, "offline")
    first.log(5, {"train/loss": 3.0})
    first.finish()
    run_id = (run_dir / "wandb_run_id").read_text()
    time.sleep(1.0)  # The parts' folders are named by the second.
    second = start(run_dir, "offline")
    second.log(4, {"train/loss": 4.125})
    second.finish()
    assert (run_dir / "wandb_run_id").read_text() == run_id
    parts = list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in parts] == [f"run-{run_id.strip()}.wandb"] * 2
    assert "4.125" in recorded(run_dir)


def test_an_empty_id_file_gets_a_new_id(run_dir):
    (run_dir / "wandb_run_id").write_text("")
    start(run_dir, "offline").finish()
    assert len((run_dir / "wandb_run_id").read_text().strip()) == 8


def test_auto_is_offline_when_nobody_is_logged_in(run_dir):
    run = start(run_dir, "auto")
    run.finish()
    assert run.mode == "offline"
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))


def test_auto_is_offline_when_the_server_does_not_answer(run_dir, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        run = start(run_dir, "auto")
        assert time.monotonic() - began < 10
    run.finish()
    assert run.mode == "offline"


def test_auto_tries_a_server_that_answers_and_goes_offline_when_it_refuses(run_dir, refusing_server, monkeypatch, caplog, capfd):
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = start(run_dir, "auto")
    run.log(1, {"train/loss": 3.0})
    run.finish()
    assert run.mode == "offline"
    assert "could not start online" in caplog.text
    assert capfd.readouterr() == ("", "")
    assert "train/loss" in recorded(run_dir)


def test_auto_heeds_wandbs_own_switch(run_dir, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start(run_dir, "auto").mode == "disabled"


def test_auto_stays_offline_with_a_key_that_cannot_be_one(run_dir, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    run = start(run_dir, "auto")
    run.finish()
    assert run.mode == "offline"
    assert "WANDB_API_KEY" in caplog.text


def test_online_without_a_login_says_what_to_do(run_dir):
    with pytest.raises(UserError, match=r"wandb login.*log\.wandb=offline"):
        start(run_dir, "online")


def test_online_says_what_the_server_answered(run_dir, refusing_server, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with pytest.raises(UserError, match=r"log\.wandb=online, but wandb could not start \(.+\)") as caught:
        start(run_dir, "online")
    assert "\n" not in str(caught.value)


def test_disabled_leaves_nothing(run_dir):
    run = start(run_dir, "disabled")
    run.log(1, {"train/loss": 3.0})
    run.finish()
    assert run.mode == "disabled"
    assert list(run_dir.iterdir()) == []


def test_a_failure_while_logging_is_warned_of_once(run_dir, caplog):
    run = start(run_dir, "offline")
    assert run.mode == "offline"
    wandb.finish()  # Behind the run's back: from now on wandb refuses to log.
    run.log(1, {"train/loss": 3.0})
    run.log(2, {"train/loss": 3.0})
    run.finish()
    # wandb's own log reaches pytest too, though no other handler.
    ours = [record.getMessage() for record in caplog.records if record.name == "trainer.reporting.wandb_run"]
    assert [text.split(" (")[0] for text in ours] == ["wandb failed at step 1"]


def test_the_command_for_the_curves_runs_as_typed(run_dir, monkeypatch):
    start(run_dir, "offline").finish()
    for place in (run_dir.parent, Path("/")):
        monkeypatch.chdir(place)
        program, path = leet_command(run_dir).split(" leet ")
        assert "inspect" in subprocess.run(f"{program} leet --help", shell=True, capture_output=True, text=True).stdout
        assert Path(shlex.split(path)[0]).resolve() == run_dir / "wandb"


def test_the_command_is_relative_where_it_can_be(run_dir, monkeypatch):
    monkeypatch.chdir(run_dir.parent)
    assert leet_command(run_dir).endswith(" leet 'a run/wandb'")
    assert leet_command(run_dir).startswith("env 'WANDB_CONFIG_DIR=a run/wandb' ")
    monkeypatch.setenv("PATH", "/nowhere")
    assert not leet_command(run_dir).split(" leet ")[0].endswith(" wandb")


def test_the_viewer_s_choices_of_somebody_else_stay(run_dir):
    start(run_dir, "offline").finish()
    chosen = {name: run_dir / "wandb" / name for name in (".wandb-leet.json", "wandb-leet.json")}
    assert all(path.is_file() for path in chosen.values())
    for path in chosen.values():
        path.write_text("{}")
    time.sleep(1.0)  # As above.
    start(run_dir, "offline").finish()
    assert [path.read_text() for path in chosen.values()] == ["{}", "{}"]


def shown_by_leet(run_dir: Path, columns: int, seconds: float = 30.0) -> str:
    """What `wandb leet` writes to a terminal of that width until it has drawn our first page, or for so long."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        shlex.split(leet_command(run_dir)), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment
    )
    os.close(theirs)
    text, until = "", time.monotonic() + seconds
    while time.monotonic() < until and not all(name in text for name in FIRST_PAGE):
        if select.select([ours], [], [], 0.2)[0]:
            text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(ours, 1 << 16).decode(errors="replace"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.close(ours)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 140])
def test_leet_opens_on_loss_and_success_and_their_names_are_whole(run_dir, columns):
    run = start(run_dir, "offline")
    for step in (1, 2, 3):
        many = {f"eval/retrieval/{way}_r{k}": 0.5 for way in ("i2t", "t2i") for k in (1, 5, 10)}
        run.log(step, many | dict.fromkeys(FIRST_PAGE, 1.0 / step))
    run.finish()
    text = shown_by_leet(run_dir, columns)
    assert [name for name in FIRST_PAGE if name not in text] == []
    assert "eval/retrieval" not in text


VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "us",
    "WANDB_NAME": "their-name",
    "WANDB_RUN_ID": "their-id",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_TAGS": "their,tags",
    "WANDB_NOTES": "their notes",
    "WANDB_JOB_TYPE": "their-type",
}
THEIRS = {
    "project": "theirs",
    "entity": "us",
    "name": "their-name",
    "id": "their-id",
    "group": "their-group",
    "tags": ("their", "tags"),
    "notes": "their notes",
    "job_type": "their-type",
}


def asked_of_wandb(monkeypatch, run_dir: Path, **log) -> dict[str, object]:
    """What wandb.init is given."""
    asked: dict[str, object] = {}

    def init(**arguments: object) -> object:
        asked.update(arguments)
        return SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda **_: None)

    monkeypatch.setattr(wandb, "init", init)
    WandbRun.start(LogConfig(wandb="offline", **log), run_dir, "demo", {}).finish()
    return {name: asked[name] for name in THEIRS}


@pytest.fixture
def begun(monkeypatch):
    """A function that starts a run in a directory and gives its id."""
    return lambda run_dir: asked_of_wandb(monkeypatch, run_dir)["id"]


def test_a_copy_of_a_run_directory_is_a_run_of_its_own(begun, run_dir, caplog):
    first = begun(run_dir)
    copy = run_dir.with_name("copy")
    shutil.copytree(run_dir, copy)
    second = begun(copy)
    assert second != first
    assert f"W&B run {second} instead of {first}, because {copy} is a copy of {run_dir}" in caplog.text
    assert begun(run_dir) == first, "the original keeps its run"
    assert begun(copy) == second, "and so does the copy from now on"


def test_a_copy_of_a_copy_and_one_whose_original_went_on_under_its_name(begun, run_dir):
    first = begun(run_dir)
    second, third = run_dir.with_name("second"), run_dir.with_name("third")
    shutil.copytree(run_dir, second)
    shutil.copytree(second, third)  # before the second was started
    ids = {begun(place) for place in (third, second, run_dir)}
    assert len(ids) == 3
    assert first in ids


@pytest.mark.parametrize("back_again", [False, True])
def test_a_directory_that_was_moved_goes_on_with_its_run(begun, run_dir, back_again, caplog):
    first = begun(run_dir)
    moved = run_dir.rename(run_dir.with_name("moved"))
    assert begun(moved) == first
    if back_again:
        assert begun(moved.rename(run_dir)) == first
    else:
        run_dir.mkdir()
        assert begun(run_dir) != first, "a new run where it was"
        assert begun(moved) == first
    assert "copy" not in caplog.text


def test_a_link_to_a_run_directory_is_no_copy(begun, run_dir):
    first = begun(run_dir)
    link = run_dir.with_name("link")
    link.symlink_to(run_dir)
    assert begun(link) == begun(run_dir) == first


def test_an_id_from_before_its_directory_was_kept_stays(begun, run_dir):
    (run_dir / "wandb_run_id").write_text("abcd1234\n")
    assert begun(run_dir) == "abcd1234"


def test_our_defaults_stand_where_nobody_says_anything(monkeypatch, run_dir):
    asked = asked_of_wandb(monkeypatch, run_dir)
    nothing = dict.fromkeys(("entity", "group", "tags", "notes"))
    run_id = (run_dir / "wandb_run_id").read_text().strip()
    assert asked == nothing | {"project": "limoe", "name": "demo", "job_type": "train", "id": run_id}


def test_wandbs_variables_come_before_our_defaults(monkeypatch, run_dir):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    asked = asked_of_wandb(monkeypatch, run_dir)
    assert asked == THEIRS
    assert (run_dir / "wandb_run_id").read_text() == "their-id\n"


def test_what_is_typed_comes_before_wandbs_variables(monkeypatch, run_dir):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    ours = {"project": "ours", "entity": "me", "name": "our-name", "group": "g", "tags": ["a"], "notes": "n", "job_type": "t"}
    assert asked_of_wandb(monkeypatch, run_dir, **ours) == ours | {"id": "their-id"}


def test_an_id_that_is_given_takes_the_place_of_the_one_that_was_kept(begun, monkeypatch, run_dir, caplog):
    first = begun(run_dir)
    monkeypatch.setenv("WANDB_RUN_ID", "their-id")
    wandb.teardown()
    assert asked_of_wandb(monkeypatch, run_dir)["id"] == "their-id"
    assert f"W&B run their-id instead of {first}, because WANDB_RUN_ID says so" in caplog.text


def test_variables_that_a_resume_forbids_are_named(monkeypatch, run_dir, tmp_path, caplog):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RESUME", "never")
    start(run_dir, "offline").finish()
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert f"WANDB_DIR={tmp_path} is ignored" in caplog.text
    assert "WANDB_RESUME=never is ignored" in caplog.text


def test_a_run_tells_what_its_users_look_for(run_dir, monkeypatch):
    """The commit, the hardware, its metrics, the group, tags and notes, the configuration, the best values, an artifact."""
    checkpoint = run_dir / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete").write_text("{}")
    log = LogConfig(wandb="offline", group="a sweep", tags=["first", "b16"], notes="why")
    run = WandbRun.start(log, run_dir, "demo", {"train": {"steps": 3}, "slurm": {"job_id": "7"}})
    run.log(1, {"train/loss": 3.25, "eval/zeroshot/top1": 0.5, "train/lr": 1.0})
    run.log(2, {"train/loss": 3.5, "eval/zeroshot/top1": 0.25, "train/lr": 2.0})
    run.checkpoint(checkpoint, 2, "last")
    run.finish()

    (told,) = records(run_dir, "run")
    assert told["config"]["update"] == {"_wandb": {}, "train": {"steps": 3}, "slurm": {"job_id": "7"}}
    assert (told["run_group"], told["tags"], told["notes"], told["job_type"]) == ("a sweep", ["first", "b16"], "why", "train")
    if (Path(__file__).parents[3] / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
        assert told["git"]["commit"] == head.stdout.strip()
    assert any("cpu_count" in record for record in records(run_dir, "environment"))
    assert any("memory_percent" in record["item"] for record in records(run_dir, "stats"))
    assert {name: last_summary(run_dir)[name] for name in ("train/loss", "eval/zeroshot/top1", "train/lr")} == {
        "train/loss": {"min": 3.25, "last": 3.5},
        "eval/zeroshot/top1": {"max": 0.5, "last": 0.25},
        "train/lr": 2.0,
    }
    axes = {record["name"]: record.get("step_metric") for record in records(run_dir, "metric") if "name" in record}
    assert axes == {"step": None, "train/loss": "step", "eval/zeroshot/top1": "step", "train/lr": "step"}
    (artifact,) = records(run_dir, "artifact")
    assert {"last", "step-2"} <= set(artifact["aliases"])
    assert artifact["manifest"]["contents"][0]["ref"] == (checkpoint / "complete").as_uri()


def test_loads_are_heat_maps_and_alerts_are_sent(run_dir):
    run = start(run_dir, "offline")
    run.log(1, {"train/loss": 3.25}, {"layer03": {"text": [0.25, 1.75]}})
    run.alert(Alert("Tokens find no slot", "step 1: only 31% of the text tokens"))
    run.finish()
    (row,) = (record["item"] for record in records(run_dir, "history"))
    assert (row["step"], row["train/loss"]) == (1, 3.25)
    shown = {part: row[f"experts/layer03/load/text.{part}"] for part in ("_type", "values", "bins")}
    assert shown == {"_type": "histogram", "values": [0.25, 1.75], "bins": [-0.5, 0.5, 1.5]}
    (alert,) = records(run_dir, "alert")
    assert (alert["title"], alert["level"]) == ("Tokens find no slot", "WARN")
    assert alert["text"] == "step 1: only 31% of the text tokens"


def test_pictures_that_cannot_be_shown_leave_the_curves(run_dir, caplog):
    def media():
        raise OSError("no room for pictures")

    run = start(run_dir, "offline")
    run.show(1, media)
    run.show(1, lambda: wandb_tables({"zeroshot": ExampleTable(["truth", "cosine"], [["a cat", 0.5]], [True])}))
    run.log(2, {"train/loss": 3.25})
    run.finish()
    assert [record.getMessage() for record in caplog.records if record.name == "trainer.reporting.wandb_run"] == [
        "wandb has no pictures of step 1 (no room for pictures): training continues without it"
    ]
    table, row = (record["item"] for record in records(run_dir, "history"))
    assert (table["predictions/zeroshot._type"], table["predictions/zeroshot.nrows"], table["step"]) == ("table-file", 1, 1)
    assert row["train/loss"] == 3.25


def test_a_resumed_run_keeps_its_best_values(run_dir):
    earlier = run_dir / "metrics.jsonl"
    earlier.write_text('{"step": 4, "eval/zeroshot/top1": 0.75, "train/loss": 2.5, "train/lr": 9}\n{"step": 5, "eval/zer')
    run = WandbRun.start(LogConfig(wandb="offline"), run_dir, "demo", {}, earlier=earlier)
    run.log(5, {"eval/zeroshot/top1": 0.5, "train/loss": 2.25, "train/lr": 1.0})
    run.log(6, {"train/loss": 2.375})
    run.finish()
    assert {name: last_summary(run_dir)[name] for name in ("eval/zeroshot/top1", "train/loss", "train/lr")} == {
        "eval/zeroshot/top1": {"max": 0.75, "last": 0.5},
        "train/loss": {"min": 2.25, "last": 2.375},
        "train/lr": 1.0,
    }


def test_training_does_not_wait_for_wandb(run_dir, monkeypatch):
    logged: list[dict] = []
    answer = threading.Event()

    def init(**_):
        assert answer.wait(60)
        return SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda **_: None, log=logged.append)

    monkeypatch.setattr(wandb, "init", init)
    run = start(run_dir, "offline")
    run.log(1, {"train/loss": 3.0})
    assert logged == []
    answer.set()
    run.finish()
    assert logged == [{"step": 1, "train/loss": 3.0}]


def test_several_nodes_offline_have_the_first_one_s_metrics_and_are_told_so(run_dir, monkeypatch, caplog):
    told: list[str] = []
    monkeypatch.setattr(wandb, "init", lambda **_: SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda **_: None))
    WandbRun.start(LogConfig(wandb="offline"), run_dir, "demo", {}, Nodes(4, told.append)).finish()
    assert told == [""]
    assert "system metrics of the first of 4 nodes only: an offline run cannot be shared" in caplog.text
    caplog.clear()
    WandbRun.start(LogConfig(wandb="offline", system_metrics="first"), run_dir, "demo", {}, Nodes(4, told.append)).finish()
    assert "nodes" not in caplog.text
