"""What every artifact carries of its origin, so that one line in the graph brings everything along.

``lineage/config.yaml`` is the resolved configuration, ``lineage/training.json`` what was logged while training; the
fine-tuned model has its base model, or the reference to it, as ``lineage/base``. A stage that was switched off, or has
failed and is none of those that a run cannot do without, leaves ``absent.json`` with the reason for whoever takes its
output.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from whence.config import Config
from whence.config_file import load_config
from whence.errors import DataError
from whence.files import digests, write_atomically, write_json
from whence.models import BASE as BASE
from whence.models import CARD_FILES, LINEAGE
from whence.running.artifacts import TRAINING_FILE

CONFIG_FILE = f"{LINEAGE}/config.yaml"
TRAINING = f"{LINEAGE}/{TRAINING_FILE}"
ABSENT = "absent.json"


class Absence(NamedTuple):
    """Why an output was not made: nobody wanted it, or its stage ``failed``."""

    why: str
    failed: bool = False


def config_of(folder: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration that an artifact was made with, with ``overrides`` by dotted key.

    Raises:
        DataError: the folder carries none.
        ConfigError: an override is wrong.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise DataError(f"{folder}: has no {CONFIG_FILE}, so no stage has written it")
    return load_config(file, overrides)


def training_of(folder: Path) -> dict[str, Any]:
    """What was logged while training the model that an artifact was made with.

    Raises:
        DataError: the folder carries none.
    """
    try:
        logged: dict[str, Any] = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: cannot read its {TRAINING}: {error}", hint="run the stage that makes it again"
        ) from error
    return logged


def hand_on(config: Config, carrier: Path | None, folder: Path) -> None:
    """Write the lineage of ``folder``: the configuration, and the training log of ``carrier`` where it has none."""
    write_atomically(folder / CONFIG_FILE, config.to_yaml())
    if carrier is not None and (carrier / TRAINING).is_file() and not (folder / TRAINING).exists():
        shutil.copyfile(carrier / TRAINING, folder / TRAINING)


def hand_on_base(base_model: Path, model: Path) -> None:
    """Put the base model, or the reference to it, into the lineage of the model trained from it."""
    shutil.rmtree(model / BASE, ignore_errors=True)
    shutil.copytree(base_model, model / BASE, ignore=shutil.ignore_patterns(LINEAGE))


def content_digests(path: Path) -> dict[str, str]:
    """sha256 by relative name of the files that decide what is made of an artifact.

    The configuration counts through the settings that a stage reads; log of a training and model card change no result.
    """
    return {name: sha for name, sha in digests(path).items() if name not in (CONFIG_FILE, TRAINING, *CARD_FILES)}


def write_absent(folder: Path, why: str, failed: bool = False) -> None:
    """Say that an output was not made, and why."""
    write_json(folder / ABSENT, Absence(why, failed)._asdict())


def absence_of(path: Path) -> Absence | None:
    """Why an artifact was not made; None for one that was."""
    file = path / ABSENT
    return Absence(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
