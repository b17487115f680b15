"""What ``prepare`` and ``whence config check`` look at before anything expensive: settings against the real world.

One list for both. The cheapest check comes first, and torch and transformers are imported by those that need them
alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from whence.config import BUILTIN_TINY_LLAMA, Config
from whence.config_file import dotted_keys, get_dotted, pack
from whence.data.prompts import check_prompts, load_prompts
from whence.errors import ConfigError, DataError
from whence.evaluation.questions import check_questions
from whence.influence.layout import layer_of
from whence.tracking import check_tracking

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS = 48 * 1024  # characters of packed settings, of which a run's Workflow of 1 MiB has a dozen copies
PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")

logger = logging.getLogger(__name__)


def check_world(
    config: Config, announce: Callable[[str], None] = lambda subject: None, without: Collection[str] = ()
) -> None:
    """Everything that can be judged without loading weights.

    Args:
        announce: is told what is looked at next, before the imports and requests that this takes.
        without: subjects that are left to whoever looks at them anyway.

    Raises:
        WhenceError: the first thing that is wrong, with its place and the way out.
    """
    for subject, look in CHECKS.items():
        if subject not in without:
            announce(subject)
            look(config)


def check_references(config: Config) -> None:
    """Prompts that are to be scored with their reference answers have one."""
    missing = [prompt.prompt_id for prompt in load_prompts(config) if not prompt.reference]
    if missing and config.scores.use_generated is not True:
        raise DataError(
            f"prompts without a reference answer to score: {', '.join(missing[:5])}",
            hint="add `reference` to them, or set scores.use_generated to true to score the model's own answers",
        )


def check_benchmark(config: Config) -> None:
    """Every subject's question files can be read; of the hub's, that there is such a subject."""
    if config.evaluation.mmlu.enabled:
        check_questions(config.evaluation.mmlu)


def check_data(config: Config) -> None:
    """Every file of the data can be read; of a hub dataset that is left to whoever loads it."""
    if config.dataset.name is None:
        from whence.data.sources import Split, read_rows

        for split in get_args(Split):
            read_rows(config.dataset, split, config.general.seed)


def check_model(config: Config) -> None:
    """The device is there, and the base model is one that can be had and used.

    The built-in one always is; its tokenizer, and so its size, is made of the data.
    """
    base = config.models.base
    if base.name == BUILTIN_TINY_LLAMA and config.general.device != "cuda":
        return
    from whence.models import loading

    loading.check_model(config)
    if base.name != BUILTIN_TINY_LLAMA:
        tokenizer = loading.load_tokenizer(base.name, base.revision)
        check_base_model(config, loading.empty_model(base.name, base.revision), tokenizer)


CHECKS: dict[str, Callable[[Config], None]] = {
    "prompts": check_references,
    "benchmark": check_benchmark,
    "data": check_data,
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
                f"{key}: holds a password, which all who see the pipeline would read",
                hint="put it into a Secret of the cluster, and name its variables in cluster.secrets",
            )
    size, prompts = len(pack(config)), len(config.prompts.items or ())
    if size > SETTINGS:
        raise ConfigError(
            f"prompts.path: {prompts} prompts make the settings {size >> 10} KiB, compressed, and a run on Kubeflow "
            f"carries {SETTINGS >> 10}",
            hint="put the file at s3:// and name that in prompts.path: `prepare` reads it there",
        )


def first_example(config: Config) -> list[tuple[str, bool]]:
    """The first training example as the model sees it: its tokens' texts, and whether their loss counts.

    Raises:
        WhenceError: the data or the tokenizer cannot be had.
    """
    from whence.data.preparation import prepare_datasets, with_format
    from whence.data.tokenization import IGNORED, Encoder
    from whence.models.builtin import train_tokenizer
    from whence.models.loading import load_tokenizer

    base, made = config.models.base, []

    def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerBase:
        own = base.name == BUILTIN_TINY_LLAMA
        made.append(train_tokenizer(texts) if own else load_tokenizer(base.name, base.revision))
        return made[0]

    train, _ = prepare_datasets(config, tokenizer_for)
    row, encoder = train.frame.iloc[0], Encoder(made[0], with_format(config, train.info.format, train.info.loss_on))
    encoded, texts = encoder.example(row["prompt"], row["completion"]), encoder.texts(row["prompt"], row["completion"])
    tokens = made[0].convert_ids_to_tokens(encoded.input_ids)
    named = [text or str(token) for text, token in zip(texts, tokens, strict=True)]  # special tokens have no text
    return [(text, label != IGNORED) for text, label in zip(named, encoded.labels, strict=True)]


def check_base_model(config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """What depends on transformers, the model's structure and tokenizer: names, prompts that fit, modules, the layer.

    Args:
        model: without weights.
    """
    from whence.influence.modules import fused_parameters, require_examples, select_modules
    from whence.models.adapters import add_adapter
    from whence.models.loading import require_checkpoint_disk, require_usable
    from whence.training import check_arguments

    check_arguments(config.training)
    require_usable(model, tokenizer, config.general)
    shortened = check_prompts(load_prompts(config), tokenizer, config)
    if shortened:
        logger.warning("%d prompts are shortened to fit general.max_length, as rows of the data are", shortened)
    lora = config.training.lora
    analysed_merged = lora.merge or config.factors.merge_adapter
    if lora.enabled and not analysed_merged:
        add_adapter(model, config)
    modules = select_modules(model, config.factors)
    require_examples(model, modules)
    fused = fused_parameters(model)
    if fused:
        logger.warning("the influence is not over fused experts (%s and the like), which cannot be tracked", fused[0])
    if lora.enabled and analysed_merged:
        add_adapter(model, config)  # which is what checkpoints hold
    if config.general.work_dir:  # where checkpoints will be; a pod's own disk is looked at by the task that has it
        require_checkpoint_disk(model, config, config.dataset.num_samples or 0, Path(config.general.work_dir))
    layers = sorted({layer for name in modules if (layer := layer_of(name)) is not None})
    if config.inspection.layer not in layers:
        raise ConfigError(
            f"inspection.layer: {config.inspection.layer} has no tracked module", hint=f"the model has {layers}"
        )
