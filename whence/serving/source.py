"""Where the model that answers comes from: a run on this machine, or the champion of the model registry."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from whence.config import Config
from whence.errors import DataError, WhenceError
from whence.run_folder import RunFolder, load_run
from whence.serving.events import Question
from whence.serving.service import Service
from whence.tracking.registry import Registry

logger = logging.getLogger(__name__)

# What a question needs besides the model: where a run folder has it, and what it is called in MLflow.
RECORDED = {("fit_factors", "factors"): "factors", ("index", "index"): "index", ("validate", "evidence"): "evidence"}


class Source(Protocol):
    """Where the model comes from."""

    def newest(self) -> str:
        """What the model to use now is known by."""
        ...

    def open(self, name: str) -> RunFolder:
        """That model with its factors and index, as a run's folder has them."""
        ...

    def keep_only(self, name: str) -> None:
        """Let go of the files of other models: this one has answered for a while."""
        ...


class LocalRun:
    """A run on this machine, always the same.

    Attributes:
        run: what it has left.
    """

    def __init__(self, folder: Path, overrides: Mapping[str, Any] | None = None) -> None:
        """``overrides`` are settings that win over the run's own; "latest" may point to another run later."""
        self.run = load_run(folder.resolve(), overrides)

    def newest(self) -> str:
        return str(self.run.folder)

    def open(self, name: str) -> RunFolder:
        return self.run

    def keep_only(self, name: str) -> None:
        """It is nobody's but the user's."""


def fetch_version(config: Config, number: str, folder: Path) -> RunFolder:
    """A version of the registered model, with the factors, index and evidence of the run that made it.

    Args:
        config: says where the registry is; its settings of ``serving`` win over those of the run.
        folder: for what is fetched, a folder for each version; what is there already is not fetched again.

    Raises:
        DataError: the run that made it recorded no factors or no index.
        PromotionError: there is no such version.
        TrackingError: MLflow cannot be reached.
    """
    registry = Registry(config)
    version = registry.version(number)
    overrides = {f"serving.{name}": value for name, value in config.serving.model_dump(mode="json").items()}
    # A registry that was made anew counts from 1 again, but its runs have other ids.
    run = RunFolder(folder / f"version-{number}-{version.run_id[:12]}", overrides)
    model = run.place("train", "model")
    if not model.exists():
        registry.download(version, model)
    for (stage, artifact), path in RECORDED.items():
        place = run.place(stage, artifact)
        if not place.exists() and not registry.fetch(version, stage, path, place) and stage != "validate":
            raise DataError(
                f"version {number} of {registry.name!r}: its run has recorded no {path} of stage {stage}",
                hint="retrain with index.enabled and retraining.explain",
            )
    return run


class Champion:
    """The champion of the registry.

    Args:
        folder: for what is fetched; an earlier champion's files are removed when another one answers.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder

    def newest(self) -> str:
        """Raises:
        DataError: there is no champion.
        TrackingError: MLflow cannot be reached.
        """
        champion = Registry(self._config).aliases().champion
        if champion is None:
            raise DataError(f"the registered model {self._config.tracking.registered_model!r} has no champion yet")
        return champion

    def open(self, name: str) -> RunFolder:
        """As :func:`fetch_version`, with its errors."""
        return fetch_version(self._config, name, self._folder)

    def keep_only(self, name: str) -> None:
        for folder in self._folder.glob("version-*"):
            if not folder.name.startswith(f"version-{name}-"):
                shutil.rmtree(folder)


class Keeper:
    """The model to answer with: another one is loaded and has answered a question before it takes over."""

    def __init__(self, source: Source) -> None:
        self._source, self._name = source, ""
        self.service: Service | None = None

    def refresh(self) -> None:
        """Load the newest model, if it is another one.

        Raises:
            WhenceError: it cannot be had; the one before it stays.
        """
        newest = self._source.newest()
        if newest == self._name:
            self._source.keep_only(newest)  # only now: the one before may still have read its factors from there
        else:
            service = Service(self._source.open(newest))
            with suppress(DataError):  # an empty answer has no rows behind it, and the next question may have
                list(service.explain(Question(question=service.example, rows=1)))
            self.service, self._name = service, newest
            logger.info("answers are now those of %s", newest)

    def follow(self, seconds: float) -> threading.Event:
        """Refresh every ``seconds`` in a thread, until the event is set that is returned."""
        stop = threading.Event()

        def run() -> None:
            while True:
                try:
                    self.refresh()
                except WhenceError as error:
                    logger.warning("%s", error)
                except Exception:
                    logger.exception("the model could not be loaded")
                if stop.wait(seconds):
                    return

        threading.Thread(target=run, daemon=True, name="champion").start()
        return stop
