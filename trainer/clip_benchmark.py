"""Let CLIP_benchmark judge exports: `limoe-clip-benchmark --pretrained EXPORT --dataset NAME …`, with its own options.

https://github.com/LAION-AI/CLIP_benchmark. It needs model/ and its own packages, but neither DeepSpeed nor Hydra.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from model.hub import local_folder
from trainer.errors import UserError, check_extra, reason

KIND = "limoe"
"""Our models among CLIP_benchmark's types."""
OUTPUT = "{dataset}_{pretrained}_{language}_{task}.json"
USAGE = """usage: limoe-clip-benchmark [eval] --pretrained EXPORT [EXPORT ...] --dataset NAME [NAME ...] [option ...]

Evaluate what `python -m trainer.export` has written, folders or hf://OWNER/NAME, by CLIP_benchmark. Its own help follows.
"""


def load_for_benchmark(pretrained: str, device: Any = "cpu", **_: Any) -> tuple[Any, Any, Any]:
    """The export in a folder as CLIP_benchmark loads models: model, transform and tokenizer."""
    from model import open_clip

    return open_clip.load(pretrained, device)


def benchmark_arguments(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """CLIP_benchmark's arguments for ours, and the folders behind the names that it gets for the exports.

    CLIP_benchmark puts the name into that of its result, where a folder's slashes would fail after the whole evaluation.
    """
    if arguments[:1] == ["build"]:
        return arguments, {}
    given = arguments[1:] if arguments[:1] == ["eval"] else arguments
    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ours.add_argument("--pretrained", nargs="+", default=[])
    ours.add_argument("--model_type", default=KIND)
    known, others = ours.parse_known_args(given)
    if known.model_type != KIND:
        return ["eval", *given], {}
    folders: dict[str, str] = {}
    for folder in known.pretrained:
        name = _name_of(folder)
        if name in folders:
            raise UserError(
                f"--pretrained: two exports would both be called {name}: evaluate them one by one, with an --output each"
            )
        folders[name] = str(local_folder(folder, "--pretrained"))
    if not folders and not any(other.startswith("--pretrained_model") for other in others):
        raise UserError("--pretrained is missing: give the folder that `python -m trainer.export run=DIR` wrote (DIR/export)")
    # Ours first: of an option that is given twice, the last counts.
    defaults = ["--model_type", KIND, "--model", KIND, "--output", OUTPUT]
    return ["eval", *defaults, *others, *(["--pretrained", *folders] if folders else [])], folders


def _name_of(folder: str) -> str:
    """`runs/demo/export` as `runs_demo_export`, `hf://owner/name` as `owner_name`."""
    parts = [part for part in Path(folder).parts if part not in ("/", ".", "..", "hf:")]
    return "_".join(parts) or Path(folder).resolve().name


def main() -> None:
    """Read the command line and evaluate."""
    try:
        _evaluate(sys.argv[1:])
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        sys.exit(2)


def _evaluate(arguments: list[str]) -> None:
    if asks_for_help := bool({"-h", "--help"} & set(arguments)):
        print(USAGE, flush=True)
    needs = "this needs CLIP_benchmark, best in an environment of its own (`make peers`)"
    check_extra("clip_benchmark", "clip-benchmark", needs)
    try:
        from clip_benchmark import cli, models
    except (ImportError, RuntimeError) as problem:  # such as torchvision's, when it was built for another torch
        raise UserError(f"CLIP_benchmark is installed, but cannot be imported: {reason(problem)}") from problem
    wanted, folders = (["eval", "-h"], {}) if asks_for_help else benchmark_arguments(arguments)

    def load(pretrained: str, **options: Any) -> tuple[Any, Any, Any]:
        return load_for_benchmark(folders.get(pretrained, pretrained), **options)

    models.TYPE2FUNC[KIND] = load
    models.MODEL_TYPES.append(KIND)  # the list that the command line has imported
    sys.argv[1:] = wanted
    cli.main()


if __name__ == "__main__":
    main()
