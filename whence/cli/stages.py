"""One command per stage, on plain folders: what an image's entry point runs, and the way to do a stage by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings
from whence.config_file import inline_prompts

stages_app = typer.Typer(rich_markup_mode="rich")
PANEL = "One stage at a time, on plain folders"


def _input(help_text: str, *, file: bool = False) -> Any:
    metavar = "FILE" if file else "DIR"
    return typer.Option(help=help_text, exists=True, file_okay=file, dir_okay=not file, metavar=metavar)


def _output(help_text: str, *, file: bool = False) -> Any:
    return typer.Option(help=help_text, metavar="FILE" if file else "DIR")


# The artifacts between the stages, as inputs and as outputs.
ResolvedConfig = Annotated[Path, _input("The settings; those `whence prepare` writes have every value.", file=True)]
BaseModel = Annotated[Path, _input("The base model, or the reference to it.")]
TrainData = Annotated[Path, _input("The training examples.")]
EvalData = Annotated[Path, _input("The held-out examples.")]
Model = Annotated[Path, _input("The fine-tuned model.")]
Factors = Annotated[Path, _input("The influence factors of the fine-tuned model.")]
Generations = Annotated[Path, _input("The answers of both models.")]
ScoresFolder = Annotated[Path, _input("The influence scores.")]


@stages_app.command(rich_help_panel=PANEL)
def prepare(
    resolved_config: Annotated[Path, _output("Receives the settings with every value explicit.", file=True)],
    base_model: Annotated[Path, _output("Receives the base model, or the reference to it.")],
    train_data: Annotated[Path, _output("Receives the training examples.")],
    eval_data: Annotated[Path, _output("Receives the held-out examples.")],
    profile: ProfileOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Check the settings and what they name, and prepare the datasets."""
    settings = inline_prompts(find_settings(profile, config, set_).load()).to_yaml()
    from whence.stages import prepare as stage

    _run(
        stage.run,
        settings=settings,
        overrides={},
        config=resolved_config,
        base_model=base_model,
        train_data=train_data,
        eval_data=eval_data,
    )


@stages_app.command(rich_help_panel=PANEL)
def train(
    config: ResolvedConfig,
    base_model: BaseModel,
    train_data: TrainData,
    eval_data: EvalData,
    model: Annotated[Path, _output("Receives the fine-tuned model.")],
    history: Annotated[Path, _output("Receives what was logged on the way, as JSON.", file=True)],
    loss_curve: Annotated[Path, _output("Receives the loss curve as an HTML page.", file=True)],
) -> None:
    """Fine-tune the base model."""
    from whence.stages import train as stage

    _run(
        stage.run,
        config=config,
        base_model=base_model,
        train_data=train_data,
        eval_data=eval_data,
        model=model,
        history=history,
        loss_curve=loss_curve,
    )


@stages_app.command(rich_help_panel=PANEL)
def fit_factors(
    config: ResolvedConfig,
    model: Model,
    train_data: TrainData,
    factors: Annotated[Path, _output("Receives the factors in kronfluence's own layout.")],
) -> None:
    """Fit the influence factors of the fine-tuned model."""
    from whence.stages import fit_factors as stage

    _run(stage.run, config=config, model=model, train_data=train_data, factors=factors)


@stages_app.command(rich_help_panel=PANEL)
def inspect(
    config: ResolvedConfig,
    factors: Factors,
    spectra: Annotated[Path, _output("Receives the plots as PNG files, and a table of all modules.")],
    spectra_page: Annotated[Path, _output("Receives plots and numbers as an HTML page.", file=True)],
) -> None:
    """Plot the factors' spectra, of all layers together and of one in full."""
    from whence.stages import inspect as stage

    _run(stage.run, config=config, factors=factors, spectra=spectra, spectra_page=spectra_page)


@stages_app.command(rich_help_panel=PANEL)
def generate(
    config: ResolvedConfig,
    base_model: BaseModel,
    model: Model,
    eval_data: EvalData,
    generations: Annotated[Path, _output("Receives the answers of both models.")],
) -> None:
    """Answer the prompts and the held-out rows with both models."""
    from whence.stages import generate as stage

    _run(stage.run, config=config, base_model=base_model, model=model, eval_data=eval_data, generations=generations)


@stages_app.command(rich_help_panel=PANEL)
def score(
    config: ResolvedConfig,
    model: Model,
    factors: Factors,
    train_data: TrainData,
    generations: Generations,
    scores: Annotated[Path, _output("Receives the scores and the tables made of them.")],
) -> None:
    """Score the influence of every training example on every query."""
    from whence.stages import score as stage

    _run(
        stage.run,
        config=config,
        model=model,
        factors=factors,
        train_data=train_data,
        generations=generations,
        scores=scores,
    )


@stages_app.command(rich_help_panel=PANEL)
def compare(
    config: ResolvedConfig,
    generations: Generations,
    scores: ScoresFolder,
    train_data: TrainData,
    comparison: Annotated[Path, _output("Receives metrics and tables.")],
    comparison_page: Annotated[Path, _output("Receives the same as an HTML page.", file=True)],
) -> None:
    """Compare the models, and put every answer beside the examples behind it."""
    from whence.stages import compare as stage

    _run(
        stage.run,
        config=config,
        generations=generations,
        scores=scores,
        train_data=train_data,
        comparison=comparison,
        comparison_page=comparison_page,
    )


@stages_app.command(rich_help_panel=PANEL)
def mmlu(
    config: ResolvedConfig,
    base_model: BaseModel,
    model: Model,
    benchmark: Annotated[Path, _output("Receives accuracies and predictions.")],
) -> None:
    """Answer multiple-choice questions of the chosen subjects."""
    from whence.stages import mmlu as stage

    _run(stage.run, config=config, base_model=base_model, model=model, benchmark=benchmark)


def _run(run: Callable[..., Any], **arguments: Any) -> None:
    for name, value in run(**arguments).metrics.items():
        typer.echo(f"{name}: {value:g}")
