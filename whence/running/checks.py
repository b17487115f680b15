"""What ``prepare`` and ``whence config check`` look at before anything expensive: settings against the real world."""

from __future__ import annotations

from pathlib import Path

from whence.config import BUILTIN_DEMO, Config
from whence.data.prompts import check_prompts, load_prompts
from whence.errors import ConfigError, DataError
from whence.influence.layout import layer_of
from whence.influence.modules import select_modules
from whence.models import check_model, empty_base, load_base_tokenizer
from whence.tracking import check_tracking


def check_world(config: Config) -> None:
    """Everything that can be judged in seconds without loading data or weights.

    Raises:
        WhenceError: the first thing that is wrong, with its place and the way out.
    """
    check_references(config)
    check_benchmark(config)
    check_model(config)
    check_tracking(config)


def check_references(config: Config) -> None:
    """Prompts that are to be scored with their reference answers have one."""
    missing = [prompt.prompt_id for prompt in load_prompts(config) if not prompt.reference]
    if missing and config.scores.use_generated is not True:
        raise DataError(
            f"prompts without a reference answer to score: {', '.join(missing[:5])}; add `reference` to them, or set "
            "scores.use_generated to true to score the model's own answers"
        )


def check_benchmark(config: Config) -> None:
    """A local question set has the files of every task."""
    mmlu = config.evaluation.mmlu
    if not mmlu.enabled or mmlu.source in ("hub", BUILTIN_DEMO):
        return
    for task in mmlu.tasks:
        for split in ("dev", "test"):
            file = Path(mmlu.source) / f"{task}_{split}.csv"
            if not file.is_file():
                raise ConfigError(
                    f"evaluation.mmlu.source: {file} is not there; the folder must hold <task>_dev.csv and "
                    "<task>_test.csv of every task in evaluation.mmlu.tasks, or set the source to hub"
                )


def check_base_model(config: Config, base_model: Path) -> None:
    """Settings that depend on the model's structure and tokenizer: prompts fit, modules exist, the layer is there.

    Args:
        base_model: the base-model artifact.
    """
    check_prompts(load_prompts(config), load_base_tokenizer(base_model), config)
    modules = select_modules(empty_base(base_model), config.factors)
    layers = sorted({layer for name in modules if (layer := layer_of(name)) is not None})
    if config.inspection.layer not in layers:
        raise ConfigError(f"inspection.layer: {config.inspection.layer} has no tracked module; the model has {layers}")
