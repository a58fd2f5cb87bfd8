"""The one parser of the commands' arguments."""

from dataclasses import replace

import pytest

from trainer.bench.__main__ import COMMAND as BENCH
from trainer.config.arguments import Argument, Command
from trainer.describe import COMMAND as DESCRIBE
from trainer.describe import read_arguments as describe_arguments
from trainer.errors import UserError
from trainer.evaluate import COMMAND as EVALUATE
from trainer.export.request import COMMAND as EXPORT
from trainer.report.experts import COMMAND as EXPERTS

COMMANDS = [BENCH, DESCRIBE, EVALUATE, EXPERTS, EXPORT]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.module)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_says_everything_and_ends_well(command: Command, flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command.read(["run=x", flag, "nonsense"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: python -m {command.module} " in said
    for argument in command.arguments:
        assert f"  {argument.form} " in said
    assert ("docs/configuration.md" in said) == bool(command.overrides)
    assert max(map(len, said.splitlines())) <= 100 or command.usage in said


def test_what_belongs_to_the_configuration_is_handed_on_as_it_is():
    given = EVALUATE.read(
        ["run=a=b", "--data.val=pipe:cat x=y | z", "--eval.zeroshot", "{a:/x}", "+train.steps=3", "eval.retrieval="]
    )
    assert given.values == {"run": "a=b"}
    assert given.overrides == ["data.val=pipe:cat x=y | z", "eval.zeroshot={a:/x}", "+train.steps=3", "eval.retrieval="]


def test_a_deletion_reaches_the_configuration_which_says_why_not():
    assert EVALUATE.read(["run=x", "~eval.zeroshot", "~router=none"]).overrides == ["~eval.zeroshot", "~router=none"]
    assert DESCRIBE.read(["~router"]).overrides == ["~router"]
    assert EVALUATE.read(["~/runs/first"]).values == {"run": "~/runs/first"}
    with pytest.raises(UserError, match="every run has one router"):
        describe_arguments(["~router"])


def test_two_dashes_alone_change_nothing():
    assert (
        EVALUATE.read(["--", "run=x", "seed=1"]) == EVALUATE.read(["run=x", "--", "seed=1"]) == EVALUATE.read(["run=x", "seed=1"])
    )


def test_several_words_are_one_list_where_there_may_be_several():
    command = Command(
        "trainer.some", "Does.", (Argument("runs", "DIR,DIR", "where", required=True), Argument("to", "DIR", "out"))
    )
    for several in (False, True):
        asked = replace(command, word="runs", several=several)
        assert asked.read(["a", "--to", "b"]).values == {"runs": "a", "to": "b"}
        if several:
            assert asked.read(["a", "--to", "b", "c"]).values == {"runs": "a,c", "to": "b"}
        else:
            with pytest.raises(UserError, match="runs is given twice"):
                asked.read(["a", "c"])
    with pytest.raises(UserError, match="runs is given twice"):
        replace(command, word="runs", several=True).read(["a", "runs=c"])
