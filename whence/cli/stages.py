"""One command per stage, on plain folders: what an image's entry point runs, and the way to do a stage by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from whence.cli.settings import ConfigOption, ProfileOption, SetOption, find_settings
from whence.config import ALL_MEASURES
from whence.config_file import inline_prompts, load_config
from whence.errors import ConfigError

stages_app = typer.Typer(rich_markup_mode="rich")
PANEL = "One stage at a time, on plain folders"

RETRAINING_PANEL = "Retraining, stage by stage"


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
def validate(
    config: ResolvedConfig,
    base_model: BaseModel,
    model: Model,
    factors: Factors,
    train_data: TrainData,
    generations: Generations,
    scores: ScoresFolder,
    evidence: Annotated[Path, _output("Receives the grade and the numbers it hangs on.")],
    summary: Annotated[Path, _output("Receives the same for reading, as Markdown.", file=True)],
    retrainings: Annotated[
        list[Path] | None, _input("Retrainings that another task has finished; may be given several times.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Measure everything, also what trains the model again many times.")
    ] = False,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only do the I-th of N shares of the retrainings, and grade nothing: for machines with one work_dir.",
        ),
    ] = None,
) -> None:
    """Measure whether the attributions can be trusted, and grade the evidence in words."""
    from rich.console import Console

    from whence.pipelines.local.evidence_table import print_evidence
    from whence.stages import retrain_share
    from whence.stages import validate as stage
    from whence.stages.artifacts import EVIDENCE
    from whence.validation.evidence import Evidence

    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "config.yaml")
        overrides: dict[str, Any] = {"validation.measures": list(ALL_MEASURES)} if full else {}
        if share is not None:
            number, overrides["general.parallel_tasks"] = read_share(share)
        resolved = load_config(config, overrides)
        settings.write_text(resolved.to_yaml(), encoding="utf-8")
        inputs = {
            "config": settings,
            "base_model": base_model,
            "model": model,
            "factors": factors,
            "train_data": train_data,
            "generations": generations,
            "scores": scores,
        }
        if share is not None:
            if resolved.general.work_dir is None:  # nobody would find them
                raise ConfigError("--share keeps its retrainings in general.work_dir, which is not set; set it")
            _run(retrain_share.run, **inputs, task=number, retrainings=Path(folder, "retrainings"))
            return
        stage.run(**inputs, evidence=evidence, summary=summary, retrainings=retrainings or ())
    print_evidence(Console(), Evidence.read(evidence / EVIDENCE))


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


@stages_app.command(rich_help_panel=PANEL)
def report(
    config: ResolvedConfig,
    train_data: TrainData,
    history: Annotated[Path, _input("What was logged while training.", file=True)],
    generations: Generations,
    scores: ScoresFolder,
    comparison: Annotated[Path, _input("The measures of both models.")],
    spectra: Annotated[Path, _input("The spectra of the factors.")],
    report: Annotated[Path, _output("Receives the report, one HTML page.", file=True)],
    summary: Annotated[Path, _output("Receives its headlines as Markdown.", file=True)],
    tables: Annotated[Path, _output("Receives its tables as CSV.")],
    evidence: Annotated[Path | None, _input("Whether the influences can be trusted, of `whence validate`.")] = None,
    benchmark: Annotated[Path | None, _input("The multiple-choice benchmark, of `whence mmlu`.")] = None,
) -> None:
    """Write everything of a run on one page."""
    from whence.stages import report as stage

    _run(
        stage.run,
        config=config,
        train_data=train_data,
        history=history,
        generations=generations,
        scores=scores,
        comparison=comparison,
        spectra=spectra,
        report=report,
        summary=summary,
        tables=tables,
        evidence=evidence,
        benchmark=benchmark,
    )


@stages_app.command(rich_help_panel=RETRAINING_PANEL)
def find_champion(
    config: ResolvedConfig,
    base_model: BaseModel,
    train_data: TrainData,
    eval_data: EvalData,
    champion: Annotated[Path, _output("Receives the champion's model; the base model where there is none.")],
    challenge: Annotated[Path, _output("Receives the settings to compare champion and candidate with.", file=True)],
    champion_version: Annotated[Path, _output("Receives its version number, empty where there is none.", file=True)],
    summary: Annotated[Path, _output("Receives what has changed, as Markdown.", file=True)],
) -> None:
    """Look up the champion, and whether data or settings have changed since."""
    from whence.stages import find_champion as stage

    _run(
        stage.run,
        config=config,
        base_model=base_model,
        train_data=train_data,
        eval_data=eval_data,
        champion=champion,
        challenge=challenge,
        champion_version=champion_version,
        summary=summary,
    )


@stages_app.command(rich_help_panel=RETRAINING_PANEL)
def gate(
    config: Annotated[Path, _input("The settings to compare champion and candidate with.", file=True)],
    eval_data: EvalData,
    generations: Annotated[Path, _input("The answers of champion and candidate.")],
    decision: Annotated[Path, _output("Receives the decision and its numbers.")],
    summary: Annotated[Path, _output("Receives the same as Markdown.", file=True)],
    champion_version: Annotated[str, typer.Option(help="The champion's version number, if there is a champion.")] = "",
    benchmark: Annotated[Path | None, _input("Their predictions for multiple-choice questions.")] = None,
) -> None:
    """Decide whether the candidate may take the champion's place."""
    from whence.stages import gate as stage

    _run(
        stage.run,
        config=config,
        champion_version=champion_version,
        eval_data=eval_data,
        generations=generations,
        benchmark=benchmark,
        decision=decision,
        summary=summary,
    )


@stages_app.command(rich_help_panel=RETRAINING_PANEL)
def promote(
    config: ResolvedConfig,
    decision: Annotated[Path, _input("What the gate decided.")],
    summary: Annotated[Path, _output("Receives what was done, as Markdown.", file=True)],
) -> None:
    """Make the candidate the champion, if the one it was compared with still is."""
    from whence.stages import promote as stage

    _run(stage.run, config=config, decision=decision, summary=summary)


def read_share(text: str) -> tuple[int, int]:
    """A share as text, ``2/4``, as tasks are counted: ``(1, 4)``.

    Raises:
        ConfigError: it is written in another way.
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"--share {text}: write it as I/N with I from 1 to N, such as 2/4")
    return int(number) - 1, int(of)


def _run(run: Callable[..., Any], **arguments: Any) -> None:
    for name, value in run(**arguments).metrics.items():
        typer.echo(f"{name}: {value:g}")
