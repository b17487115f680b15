"""``whence evaluate``: a fine-tuned model against its base, without the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings
from whence.config import Config
from whence.config_file import inline_prompts, pack
from whence.errors import ConfigError
from whence.files import link_tree


class Kind(StrEnum):
    """What ``whence evaluate`` runs."""

    ALL = "all"
    CUSTOM = "custom"
    MMLU = "mmlu"


def evaluate(
    type_: Annotated[
        Kind, typer.Option("--type", help="custom: prompts and held-out rows; mmlu: multiple-choice questions.")
    ] = Kind.ALL,
    profile: ProfileOption = None,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="Fine-tuned model; else models.finetuned.path."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="Influence scores of this model, shown beside."),
    ] = None,
    output_folder: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Receives all that is written.")
    ] = Path("whence-output/evaluate"),
) -> None:
    """Evaluate a fine-tuned model against its base: own prompts and held-out rows, MMLU, or both."""
    config = inline_prompts(find_settings(profile, config_file, set_).load())
    source = _finetuned_model(config, model)
    from whence.running.lineage import config_of, hand_on, hand_on_base
    from whence.running.runner import run_stage
    from whence.stages import stage

    def run(name: str, inputs: Mapping[str, Path | None], *outputs: str, **parameters: str) -> dict[str, float]:
        paths = {output: output_folder / output for output in outputs}
        return run_stage(stage(name), inputs=inputs, outputs=paths, parameters=parameters).metrics

    run("prepare", {}, "base_model", "train_data", "eval_data", settings=pack(config))
    finetuned = output_folder / "model"
    link_tree(source, finetuned)
    hand_on_base(output_folder / "base_model", finetuned)
    hand_on(config_of(output_folder / "base_model"), None, finetuned)
    metrics: dict[str, float] = {}
    if type_ in (Kind.ALL, Kind.CUSTOM):
        run("generate", {"model": finetuned, "eval_data": output_folder / "eval_data"}, "generations")
        metrics |= run("compare", {"generations": output_folder / "generations", "scores": scores}, "comparison")
    if type_ in (Kind.ALL, Kind.MMLU):
        metrics |= run("mmlu", {"model": finetuned}, "benchmark")
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:.4g}")
    typer.echo(f"Everything is in {output_folder}")


def _finetuned_model(config: Config, model: Path | None) -> Path:
    path = config.models.finetuned.path
    if model is None and path is None:
        raise ConfigError(
            "which fine-tuned model? Give its folder with --model, or set models.finetuned.path to where `whence run` "
            "is to save it"
        )
    folder = model or Path(str(path))
    if not folder.is_dir():
        raise ConfigError(
            f"models.finetuned.path: {folder} is not there", hint="run `whence run` first, or give --model"
        )
    return folder
