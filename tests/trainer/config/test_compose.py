"""What a command line means, and the one line that says what is wrong with it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from trainer.config.compose import CONF, KEYS, compose_config, load_config, quote_text, to_config
from trainer.config.keys import KEYS as KEYS_WITH_VALUES
from trainer.config.keys import Key, value_of
from trainer.config.schema import Config
from trainer.errors import UserError

ROUTERS = ", ".join(sorted(path.stem for path in (CONF / "router").glob("*.yaml")))


def message(overrides: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        compose_config(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_and_groups_reach_the_configuration():
    config = compose_config(["model=dense_tiny", "train.steps=7", "optim.lr=3e-4", "run.name=x", "checkpoint.every_steps=null"])
    assert (config.model.name, config.model.expert_layers) == ("dense_tiny", [])
    assert (config.train.steps, config.optim.lr, config.checkpoint.every_steps) == (7, 3e-4, None)
    assert config.run.dir == "runs/x"


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.stpes=3", "train.steps"),
        ("+train.stpes=3", "train.steps"),
        ("++optim.l=3", "optim.lr"),
        ("modle=limoe_tiny", "model"),
        ("routr.top_k=2", "router.top_k"),
        ("paralel.zero_stage=3", "parallel.zero_stage"),
    ],
)
def test_a_mistyped_key_is_named_with_the_nearest(override: str, near: str):
    told = message(["seed=1", override])
    assert told.startswith(f"'{override}': the configuration has no key ")
    assert f"(did you mean '{near}'?)" in told


@pytest.mark.parametrize("override", ["+foo=3", "++foo.bar=3", "=3"])
def test_a_key_like_no_other_is_named(override: str):
    assert message([override]).startswith(f"'{override}': the configuration has no key ")


@pytest.mark.parametrize(("override", "near"), [("model=limoe_tny", "limoe_tiny"), ("schedule=cosin", "cosine")])
def test_a_mistyped_choice_is_named_with_the_nearest(override: str, near: str):
    told = message([override])
    assert f"'{override}' does not exist (did you mean '{near}'?)" in told
    assert " can be " in told


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.steps=abc", ("train.steps", "abc", "Integer")),
        ("train.steps=1.5", ("train.steps", "1.5")),
        ("optim.lr=fast", ("optim.lr", "fast", "Float")),
        ("model.width=null", ("model.width",)),
        ("model.expert_layers=3", ("model.expert_layers",)),
        ("train=3", ("train", "3")),
        ("run.dir=${nope}", ("run.dir", "nope")),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override: str, parts: tuple[str, ...]):
    told = message([override])
    assert all(part in told for part in parts), told


@pytest.mark.parametrize("override", ["train.steps", "train.steps=[1", "model.expert_layers=[1,"])
def test_what_cannot_be_parsed_is_named_with_the_form(override: str):
    told = message([override])
    assert told.startswith(f"'{override}' cannot be parsed")
    assert "key=value" in told


@pytest.mark.parametrize("override", ["hydra/launcher=slurm", "hydra.launcher.nodes=2"])
def test_a_launcher_without_a_sweep_says_what_to_type(override: str):
    assert "add -m, or submit a single run with sbatch" in message([override])


def test_several_values_without_a_sweep_say_how_to_ask_for_one():
    assert "add -m to train with each" in message(["optim.lr=1e-3,3e-4"])


@pytest.mark.parametrize(
    "pattern",
    [
        "/x/cc12m-{000000..001099}.tar",
        "pipe:curl -s https://h/a-{0..3}.tar?k=v",
        "/x/a b=c.tar",
        "/x/{a,b}.tar",
        '/x/"q"={1}.tar',
    ],
)
def test_a_shard_pattern_is_typed_as_it_is(pattern: str):
    assert compose_config([f"data.train={pattern}"]).data.train == pattern


@pytest.mark.parametrize("key", [key for key in KEYS_WITH_VALUES.values() if key.option.path], ids=lambda key: key.name)
@pytest.mark.parametrize(
    ("typed", "meant"), [("~/x/", "/home/me/x"), ("$SCRATCH/x", "/scratch/x"), ("file:///a/x", "/a/x"), ("x", "x")]
)
def test_every_path_is_read_by_one_rule(key: Key, typed: str, meant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    config = compose_config([f"{key.name}={typed}"])
    assert value_of(config, key.name) == meant
    assert value_of(to_config(OmegaConf.structured(config)), key.name) == meant, "config.yaml is read again"


def test_paths_in_lists_and_mappings_too_but_neither_commands_nor_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    overrides = ["data.train=[~/a.tar, /b.tar, pipe:cat ~/c.tar]", "eval.zeroshot={a: ~/a, b: null}", "resume=never"]
    config = compose_config([overrides[0].replace("pipe:cat ~/c.tar", "'pipe:cat ~/c.tar'"), *overrides[1:]])
    assert config.data.train == ["/home/me/a.tar", "/b.tar", "pipe:cat ~/c.tar"]
    assert config.eval.zeroshot == {"a": "/home/me/a", "b": None}
    assert (config.resume, config.data.cache, config.eval.retrieval) == ("never", "~/.cache/limoe", True)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("run.dir=~no-such-user/x", "run.dir=~no-such-user/x: the home directory"),
        ("data.train=$NO_SUCH_VARIABLE/x.tar", "the environment variable $NO_SUCH_VARIABLE is not set"),
        ("eval.zeroshot={a: ~no-such-user}", "eval.zeroshot.a=~no-such-user: the home directory"),
    ],
)
def test_a_path_that_means_nothing_is_named_with_its_key(override: str, told: str):
    assert told in message([override])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("~train.ema", "a key cannot be deleted; turn it off with train.ema=null"),
        ("~train.steps", "the default is train.steps=1000"),
        ("~router", f"every run has one router: choose {ROUTERS}"),
        ("~train", "a section cannot be deleted; set the keys of train, such as train.steps"),
        ("~experiment", "leave experiment= out"),
        ("experiment=null", "leave experiment= out"),
        ("router=null", f"every run has one router: choose {ROUTERS}"),
        ("schedule=3", "every run has one schedule: choose cosine, rsqrt"),
        ("~train.emma", "did you mean 'train.ema'?"),
        ("~eval.zeroshot", "eval.zeroshot=null"),
    ],
)
def test_what_deleting_would_not_do_is_told(override: str, told: str):
    assert told in message(["experiment=limoe_h14", override])


@pytest.mark.parametrize("override", ["train.ema=null", "router=none"])
def test_what_is_told_in_place_of_deleting_works(override: str):
    assert compose_config([override]).train.ema is None


def test_lists_and_quoted_texts_keep_their_meaning():
    assert compose_config(['data.train=["/a-{0..1}.tar",/b.tar]']).data.train == ["/a-{0..1}.tar", "/b.tar"]
    assert compose_config(["run.name='a,b'"]).run.name == "a,b"
    assert compose_config(["eval.zeroshot={a:/x}"]).eval.zeroshot == {"a": "/x"}


def test_only_values_that_hydra_cannot_read_are_quoted():
    assert quote_text("run.name=lr-${optim.lr}") == "run.name=lr-${optim.lr}"
    assert quote_text("model.expert_layers=[1,2") == "model.expert_layers=[1,2"
    assert quote_text("--cfg") == "--cfg"
    assert quote_text("data.val=/a-{0..1}.tar") == 'data.val="/a-{0..1}.tar"'


@pytest.mark.parametrize("key", ["train.freeze", "model.expert_layers"])
def test_a_list_is_asked_for_where_a_single_value_is_given(key: str):
    with pytest.raises(UserError, match=rf"^{key} takes a list: write it in brackets, as in '{key}=\[ONE,ANOTHER\]'$"):
        compose_config([f"{key}=3"])


def test_every_key_of_the_default_configuration_is_known():
    def names(values: object, prefix: str = "") -> list[str]:
        if not isinstance(values, dict):
            return [prefix.removesuffix(".")]
        return [name for key, value in values.items() for name in names(value, f"{prefix}{key}.")]

    assert set(names(OmegaConf.to_container(OmegaConf.structured(Config)))) <= set(KEYS)


def test_a_loaded_configuration_is_checked_too():
    with pytest.raises(UserError, match=r"no key 'train.stpes' \(did you mean 'train.steps'\?\)"):
        to_config(OmegaConf.create({"train": {"stpes": 3}}))


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2\n", "\x00\x01"])
def test_a_damaged_configuration_file_is_named(tmp_path: Path, content: str):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path} is not the configuration of a run")
    assert "\n" not in str(caught.value)


def test_a_missing_configuration_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere/config.yaml is not the configuration of a run"):
        load_config(tmp_path / "nowhere" / "config.yaml")


@pytest.mark.parametrize("key", ["run.dir", "init_from", "resume", "data.cache", "data.tokenizer"])
def test_a_url_in_the_place_of_a_directory_is_no_folder_of_that_name(key: str):
    with pytest.raises(UserError, match=f"{key}=s3://bucket/x: a path is needed here"):
        compose_config([f"{key}=s3://bucket/x"])
    assert compose_config(["data.train=s3://bucket/x.tar"]).data.train == "s3://bucket/x.tar"
