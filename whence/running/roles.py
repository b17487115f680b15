"""Which two models a run compares: base and fine-tuned, or, when retraining, champion and candidate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whence.config import Config
from whence.config_file import parse_config
from whence.files import write_json
from whence.running.artifacts import CHAMPION, MODELS_FILE
from whence.running.declaration import Work
from whence.running.lineage import BASE
from whence.running.provenance import model_digest

CHAMPION_INPUT = CHAMPION.without("Compared in place of the base model when retraining.")


@dataclass(frozen=True)
class ComparedModel:
    """One of the two models: its name for people, and its folder."""

    id: str
    folder: Path


def models_to_compare(work: Work) -> dict[str, ComparedModel]:
    """The models by role, ``base`` and ``finetuned``; the first candidate ever is compared with the base model."""
    model, names = work.inputs["model"], work.config.models
    base = ComparedModel(names.base.id, model / BASE)
    if CHAMPION.name in work.inputs:
        base = ComparedModel("champion", work.inputs[CHAMPION.name])
    return {"base": base, "finetuned": ComparedModel("candidate" if is_retraining(work) else names.finetuned.id, model)}


def is_retraining(work: Work) -> bool:
    """Whether the registry was asked for a champion, whether or not there is one."""
    return CHAMPION.name in work.inputs or CHAMPION.name in work.absent


def write_models(folder: Path, models: Mapping[str, ComparedModel]) -> None:
    """Write ``models.json``: name and digest of each model that has answered, by role."""
    write_json(
        folder / MODELS_FILE,
        {role: {"id": model.id, "digest": model_digest(model.folder)} for role, model in models.items()},
    )


def model_digests(folder: Path) -> dict[str, str]:
    """The digests of the models that have answered, by role."""
    models = json.loads((folder / MODELS_FILE).read_text(encoding="utf-8"))
    return {role: model["digest"] for role, model in models.items()}


def with_model_names(config: Config, folder: Path) -> Config:
    """``config`` with the model names that the answers in ``folder`` are stored under."""
    models = json.loads((folder / MODELS_FILE).read_text(encoding="utf-8"))
    return parse_config(config.to_yaml(), {f"models.{role}.id": model["id"] for role, model in models.items()})
