"""A share of the retrainings that stage ``validate`` asks for, for several machines to do them together."""

from __future__ import annotations

from pathlib import Path

from whence.config_file import load_config
from whence.errors import ConfigError
from whence.stages.evidence import Gathering
from whence.stages.runner import open_workspace
from whence.stages.validate import SETTINGS


def retrain_share(
    *,
    config: Path,
    base_model: Path,
    model: Path,
    factors: Path,
    train_data: Path,
    generations: Path,
    scores: Path,
    share: tuple[int, int],
) -> int:
    """Do one share of the retrainings that ``validate`` would do, for machines that have the work folder in common.

    Args:
        share: ``(i, n)`` for every n-th of the missing retrainings, beginning with the i-th (from 0).

    Returns:
        How many of all retrainings are finished now; ``validate`` then finds them there.

    Raises:
        ConfigError: ``general.work_dir`` is not set, so that nobody would find them.
    """
    settings = load_config(config)
    if settings.general.work_dir is None:
        raise ConfigError("a share of the retrainings is kept in general.work_dir, which is not set; set it")
    inputs = {"base_model": base_model, "model": model, "factors": factors, "train_data": train_data,
              "generations": generations, "scores": scores}  # fmt: skip
    work = open_workspace("validate", settings, inputs, {}, SETTINGS, settings.general.work_dir)
    work.scratch.mkdir(parents=True, exist_ok=True)
    gathering = Gathering.open(work.scratch, settings, model, base_model, factors, train_data, generations, scores)
    return gathering.retrain(settings.validation.measures, share)
