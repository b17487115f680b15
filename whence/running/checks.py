"""What ``prepare`` and ``whence config check`` look at before anything expensive: settings against the real world.

The cheapest check comes first, and torch and transformers are imported by those that need them alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from whence.config import BUILTIN_TINY_LLAMA, Config
from whence.config_file import dotted_keys, get_dotted, pack
from whence.data.prompts import check_prompts, load_prompts
from whence.errors import ConfigError, DataError
from whence.evaluation.questions import check_questions
from whence.influence.layout import layer_of
from whence.tracking import check_tracking

SETTINGS = 48 * 1024  # characters of packed settings, of which a run's Workflow of 1 MiB has a dozen copies
PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def check_world(config: Config, announce: Callable[[str], None] = lambda subject: None) -> None:
    """Everything that can be judged in seconds without loading data or weights.

    Args:
        announce: is told what is looked at next, before the imports and requests that this takes.

    Raises:
        WhenceError: the first thing that is wrong, with its place and the way out.
    """
    for subject, look in CHECKS.items():
        announce(subject)
        look(config)


def check_references(config: Config) -> None:
    """Prompts that are to be scored with their reference answers have one."""
    missing = [prompt.prompt_id for prompt in load_prompts(config) if not prompt.reference]
    if missing and config.scores.use_generated is not True:
        raise DataError(
            f"prompts without a reference answer to score: {', '.join(missing[:5])}; add `reference` to them, or set "
            "scores.use_generated to true to score the model's own answers"
        )


def check_benchmark(config: Config) -> None:
    """Every subject's question files can be read; of the hub's, that there is such a subject."""
    if config.evaluation.mmlu.enabled:
        check_questions(config.evaluation.mmlu)


def check_model(config: Config) -> None:
    """The device is there, and the base model is one that can be had; the built-in one always is."""
    if config.models.base.name == BUILTIN_TINY_LLAMA and config.general.device != "cuda":
        return
    from whence.models import loading

    loading.check_model(config)


CHECKS: dict[str, Callable[[Config], None]] = {
    "prompts": check_references,
    "benchmark": check_benchmark,
    "tracking": check_tracking,
    "base model": check_model,
}


def check_portable(config: Config) -> None:
    """Settings can travel in a compiled pipeline.

    Raises:
        ConfigError: they are longer than a run can carry, or an address among them holds a password.
    """
    for key in dotted_keys():
        if not key.startswith("prompts.") and PASSWORD.search(str(get_dotted(config, key))):
            raise ConfigError(
                f"{key}: holds a password, which all who see the pipeline would read; put it into a Secret of the "
                "cluster, and name its variables in cluster.secrets"
            )
    size, prompts = len(pack(config)), len(config.prompts.items or ())
    if size > SETTINGS:
        raise ConfigError(
            f"prompts.path: {prompts} prompts make the settings {size >> 10} KiB, compressed, and a run on Kubeflow "
            f"carries {SETTINGS >> 10}; put the file at s3:// and name that in prompts.path: `prepare` reads it there"
        )


def check_base_model(config: Config, base_model: Path) -> None:
    """Settings that depend on the model's structure and tokenizer: prompts fit, modules exist, the layer is there.

    Args:
        base_model: the base-model artifact.
    """
    from whence.influence.modules import require_examples, select_modules
    from whence.models.loading import empty_base, load_base_tokenizer

    check_prompts(load_prompts(config), load_base_tokenizer(base_model), config)
    model = empty_base(base_model)
    modules = select_modules(model, config.factors)
    require_examples(model, modules)
    layers = sorted({layer for name in modules if (layer := layer_of(name)) is not None})
    if config.inspection.layer not in layers:
        raise ConfigError(f"inspection.layer: {config.inspection.layer} has no tracked module; the model has {layers}")
