"""``whence evaluate``: a fine-tuned model against its base, without the pipeline."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings
from whence.config import Config
from whence.config_file import inline_prompts
from whence.errors import ConfigError


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
    config: ConfigOption = None,
    set_: SetOption = None,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="Fine-tuned model; else models.finetuned.path."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="Influence scores of this model, shown beside."),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Receives everything that is written.")] = Path(
        "whence-output/evaluate"
    ),
) -> None:
    """Evaluate a fine-tuned model against its base: own prompts and held-out rows, MMLU, or both."""
    settings = inline_prompts(find_settings(profile, config, set_).load())
    finetuned = _finetuned_model(settings, model)
    from whence.stages import mmlu, prepare

    resolved, base_model, eval_data = output / "config.yaml", output / "base_model", output / "eval_data"
    prepare.run(
        settings=settings.to_yaml(),
        overrides={},
        config=resolved,
        base_model=base_model,
        train_data=output / "train_data",
        eval_data=eval_data,
    )
    metrics: dict[str, float] = {}
    if type_ in (Kind.ALL, Kind.CUSTOM):
        metrics |= _compare(settings, output, finetuned, scores)
    if type_ in (Kind.ALL, Kind.MMLU) and settings.evaluation.mmlu.enabled:
        metrics |= mmlu.run(
            config=resolved, base_model=base_model, model=finetuned, benchmark=output / "benchmark"
        ).metrics
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:.4g}")
    typer.echo(f"Everything is in {output}")


def _compare(settings: Config, output: Path, model: Path, scores: Path | None) -> dict[str, float]:
    """Generate and compare; the stage ``compare`` joins influences, so without scores there are the measures alone."""
    import pandas as pd

    from whence.data.prompts import load_prompts
    from whence.evaluation.comparison import compare_models, headline_metrics
    from whence.stages import compare, generate
    from whence.stages.artifacts import COMPARISON, EVAL_ANSWERS, GENERATIONS

    resolved, generations, comparison = output / "config.yaml", output / "generations", output / "comparison"
    generate.run(
        config=resolved,
        base_model=output / "base_model",
        model=model,
        eval_data=output / "eval_data",
        generations=generations,
    )
    if scores is not None:
        return compare.run(
            config=resolved,
            generations=generations,
            scores=scores,
            train_data=output / "train_data",
            comparison=comparison,
            comparison_page=output / "comparison.html",
        ).metrics
    references = {prompt.prompt_id: prompt.reference for prompt in load_prompts(settings)}
    eval_answers, answers = (pd.read_parquet(generations / name) for name in (EVAL_ANSWERS, GENERATIONS))
    measured = compare_models(eval_answers, answers, references, settings)
    comparison.mkdir(parents=True, exist_ok=True)
    (comparison / COMPARISON).write_text(json.dumps(measured, indent=1), encoding="utf-8")
    return headline_metrics(measured)


def _finetuned_model(settings: Config, model: Path | None) -> Path:
    named = settings.models.finetuned.path
    if model is None and named is None:
        raise ConfigError(
            "which fine-tuned model? Give its folder with --model, or set models.finetuned.path to where `whence run` "
            "is to save it"
        )
    folder = model or Path(str(named))
    if not folder.is_dir():
        raise ConfigError(f"models.finetuned.path: {folder} is not there; run `whence run` first, or give --model")
    return folder
