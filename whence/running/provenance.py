"""What a fine-tuned model comes from, as tags of its version: data, base model, settings; and what it is judged by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whence.config import Config
from whence.config_file import dotted_keys, get_dotted
from whence.files import digest_of, digests
from whence.models import CARD_FILES, LINEAGE
from whence.running.declaration import TOKENS

DATA_TAG, BASE_TAG, SETTINGS_TAG = "whence.data_fingerprint", "whence.base_model", "whence.settings"
# Where, how fast, how often saved or reported: these do not change the model; every other setting is assumed to.
OPERATIONAL = {
    "general.device",
    "general.parallel_tasks",
    "general.work_dir",
    "training.dataloader_num_workers",
    "training.eval_steps",
    "training.gradient_checkpointing",
    "training.logging_steps",
    "training.per_device_eval_batch_size",
    "training.save_steps",
    "training.save_total_limit",
}


def model_digest(folder: Path) -> str:
    """sha256 (hex) of a model's files, names and contents; its lineage and its card do not count."""
    found = {name: sha for name, sha in digests(folder).items() if not name.startswith(f"{LINEAGE}/")}
    return digest_of({name: sha for name, sha in found.items() if name not in CARD_FILES})


def provenance(config: Config, base_model: Path, train_data: Path) -> dict[str, str]:
    """The tags: fingerprint of the training examples, digest of the base-model artifact, settings as JSON.

    Two models of the same provenance are the same model, as far as arithmetic on accelerators repeats itself.
    """
    from whence.data.dataset import ExampleSet

    return {
        DATA_TAG: ExampleSet.read(train_data).info.fingerprint,
        BASE_TAG: model_digest(base_model),
        SETTINGS_TAG: json.dumps({key: get_dotted(config, key) for key in _deciding_settings()}),
    }


def changes(now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
    """In words what differs between two provenances, e.g. ``training.learning_rate: 0.002, now 0.001``."""
    differences = []
    for tag, what in ((DATA_TAG, "training data"), (BASE_TAG, "base model")):
        if now[tag] != then.get(tag):
            differences.append(f"{what}: {then.get(tag, 'unknown')[:12]}, now {now[tag][:12]}")
    before, after = (_settings(tags) for tags in (then, now))
    if before is None or after is None:
        return [*differences, "settings: unknown"]
    return differences + [
        f"{key}: {_shown(before.get(key))}, now {_shown(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def judged_by(config: Config, eval_data: Path, champion_version: str) -> str:
    """sha256 (hex) of what the gate decides by: champion, held-out rows, prompts, how they are asked, and the rules.

    A model of the same provenance, judged by the same, gets the same answer. Switches of the benchmark's two models are
    left out, since champion and candidate both take it.

    Args:
        champion_version: its version number, empty where there is none and the base model is compared.
    """
    from whence.data.dataset import ExampleSet
    from whence.data.prompts import load_prompts

    rules, evaluation = config.retraining, config.evaluation
    content = [
        champion_version,
        ExampleSet.read(eval_data).info.fingerprint,
        [prompt.model_dump() for prompt in load_prompts(config)],
        config.generation.model_dump(mode="json"),
        evaluation.model_dump(mode="json", exclude={"mmlu": {"base", "finetuned"}}),
        rules.model_dump(mode="json", exclude={"explain"}),
    ]
    return digest_of(content)


def _deciding_settings() -> list[str]:
    keys = [key for key in dotted_keys() if key.startswith(("general.", "training."))]
    return [*(key for key in keys if key not in OPERATIONAL), *TOKENS]


def _settings(tags: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        settings: dict[str, Any] = json.loads(tags[SETTINGS_TAG])
    except (KeyError, ValueError):
        return None
    return settings


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
