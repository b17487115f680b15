"""Where the model that answers comes from: a run on this machine, or the champion of the model registry."""

from __future__ import annotations

import logging
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

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


class LocalRun:
    """A run on this machine, always the same."""

    def __init__(self, folder: Path) -> None:
        self._run = load_run(folder.resolve())  # "latest" may point to another run later

    def newest(self) -> str:
        return str(self._run.folder)

    def open(self, name: str) -> RunFolder:
        return self._run


class Champion:
    """The champion of the registry, with the factors, index and evidence of the run that made it.

    Args:
        folder: for what is fetched; an earlier champion's files are removed when another one is fetched.
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
        """Raises:
        DataError: the run that made it recorded no factors or no index.
        TrackingError: MLflow cannot be reached.
        """
        registry, folder = Registry(self._config), self._folder / f"version-{name}"
        version, run = registry.version(name), RunFolder(folder)
        registry.download(version, run.place("train", "model"))
        for (stage, artifact), path in RECORDED.items():
            if not registry.fetch(version, stage, path, run.place(stage, artifact)) and stage != "validate":
                raise DataError(
                    f"version {name} of {registry.name!r}: its run has recorded no {path} of stage {stage}",
                    hint="retrain with index.enabled and retraining.explain",
                )
        for other in self._folder.glob("version-*"):
            if other != folder:
                shutil.rmtree(other)
        return run


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
        if newest != self._name:
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
