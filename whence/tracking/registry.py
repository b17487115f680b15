"""Which version of the registered model is the champion: aliases of MLflow's model registry, moved by one at a time.

MLflow sets an alias whatever it was before: there is no compare-and-set. So a promotion holds a lock, and what the gate
compared with is compared again under it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from whence.config import Config
from whence.errors import PromotionError
from whence.tracking.address import Address
from whence.tracking.faults import explained, none_if_absent, retrying
from whence.tracking.lock import Lock
from whence.tracking.run import PIPELINE_VARIABLE
from whence.tracking.server import open_client
from whence.tracking.settle import PARENT_TAG, STAGE_TAG

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

T = TypeVar("T")

CHAMPION, PREVIOUS = "champion", "previous"
CONTENT_TAG = "whence.model_digest"
PROMOTED_BY_TAG = "whence.promoted_by"
ROLLED_BACK_TAG = "whence.rolled_back"
REFUSED_TAG = "whence.refused"
BY_HAND = "by hand"


@dataclass(frozen=True)
class Version:
    """A version of the registered model.

    Attributes:
        number: as MLflow counts, from "1".
        source: where its files are.
        created: milliseconds since the epoch.
        run_id: of the MLflow run that registered it.
    """

    number: str
    source: str
    created: int
    tags: Mapping[str, str]
    run_id: str = ""

    @property
    def rolled_back(self) -> bool:
        """Whether it was the champion until somebody took that back."""
        return ROLLED_BACK_TAG in self.tags


@dataclass(frozen=True)
class Aliases:
    """The version numbers of the champion and of the one before it; None where there is none."""

    champion: str | None
    previous: str | None


class Registry:
    """The registered model of the settings.

    Raises:
        TrackingError: from every method, when MLflow cannot be reached or refuses.
    """

    def __init__(self, config: Config) -> None:
        self.address = Address.parse(config.tracking.uri)
        self.name = config.tracking.registered_model
        self._seconds = config.tracking.retry_seconds
        self._request(self.address.probe)
        self._client = open_client(self.address)

    def aliases(self) -> Aliases:
        """The present champion and the one before it; of a model that does not exist yet, neither."""
        model = self._look_up(lambda: self._client.get_registered_model(self.name))
        aliases = dict(model.aliases) if model else {}
        return Aliases(*(None if name not in aliases else str(aliases[name]) for name in (CHAMPION, PREVIOUS)))

    def champion(self) -> Version | None:
        """The champion, if there is one."""
        number = self.aliases().champion
        return None if number is None else self.version(number)

    def version(self, number: str) -> Version:
        """A version by its number.

        Raises:
            PromotionError: there is no such version.
        """
        found = self._look_up(lambda: self._client.get_model_version(self.name, number))
        if found is None:
            raise PromotionError(f"version {number} of the registered model {self.name!r}: there is none")
        return _version(found)

    def versions(self, tag: str, value: str) -> list[Version]:
        """The versions with a tag of this value, the newest first."""
        query = f"name = '{self.name}' and tags.`{tag}` = '{value}'"
        versions = self._request(lambda: list(self._client.search_model_versions(query, max_results=1000)))
        return sorted(map(_version, versions), key=lambda version: -int(version.number))

    def holding(self, digest: str) -> Version:
        """The newest version that holds exactly the model of this digest.

        Raises:
            PromotionError: there is none.
        """
        found = self.versions(CONTENT_TAG, digest)
        if not found:
            raise PromotionError(
                f"registered model {self.name!r}: no version holds the model that was compared ({digest[:12]}...), "
                "perhaps since MLflow was away when it was trained",
                hint="run the retraining again",
            )
        return found[0]

    def refuse(self, candidate: Version, judged_by: str) -> None:
        """Note that the gate has refused a version, and by what (a digest): the same need not be tried again."""
        self._tag(candidate.number, REFUSED_TAG, judged_by)

    def download(self, version: Version, folder: Path) -> None:
        """Fetch the files of a version into ``folder``, in place of what is there."""
        self._download(version.source, folder)

    def _download(self, address: str, folder: Path) -> None:
        from mlflow.artifacts import download_artifacts

        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            # MLflow makes a folder of its own in there.
            fetched = self._request(
                lambda: download_artifacts(address, dst_path=scratch, tracking_uri=self.address.uri)
            )
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(fetched, folder)

    def fetch(self, version: Version, stage: str, artifact: str, folder: Path) -> bool:
        """Fetch what a stage recorded in the run that made a version, in place of what is in ``folder``.

        Returns:
            False when there is no such artifact.
        """

        def find() -> str | None:
            run = self._client.get_run(version.run_id)
            parent = run.data.tags.get(PARENT_TAG, version.run_id)
            query = f"tags.`{PARENT_TAG}` = '{parent}' and tags.`{STAGE_TAG}` = '{stage}'"
            for child in self._client.search_runs([run.info.experiment_id], query):
                if self._client.list_artifacts(child.info.run_id, artifact):
                    return f"runs:/{child.info.run_id}/{artifact}"
            return None

        address = self._request(find)
        if address is not None:
            self._download(address, folder)
        return address is not None

    def promote(self, candidate: Version, over: str | None) -> bool:
        """Make ``candidate`` the champion, if ``over`` (None: none) still is; may be repeated.

        Returns:
            False when it is the champion already.

        Raises:
            PromotionError: another version has become the champion since, or the candidate was rolled back.
        """
        with self._locked() as still_held:
            now, candidate = self.aliases(), self.version(candidate.number)
            promoter = os.environ.get(PIPELINE_VARIABLE) or BY_HAND
            if now.champion == candidate.number:
                self._tag(candidate.number, PROMOTED_BY_TAG, promoter, keep=candidate)
                return False
            self._require_current(candidate, now.champion, over)
            if candidate.rolled_back or (promoter != BY_HAND and candidate.tags.get(PROMOTED_BY_TAG) == promoter):
                raise PromotionError(
                    f"version {candidate.number} of {self.name!r} was the champion already and is not any more",
                    hint=f"it is not promoted again by itself: whence champion set {candidate.number}",
                )
            self._move(candidate.number, now.champion, still_held)
            self._tag(candidate.number, PROMOTED_BY_TAG, promoter)
        return True

    def set_champion(self, number: str) -> Aliases:
        """Make a version the champion by hand, whatever the gate has said, and return the aliases before that."""
        with self._locked() as still_held:
            now, chosen = self.aliases(), self.version(number)
            if now.champion != chosen.number:
                if chosen.rolled_back:
                    self._request(lambda: self._client.delete_model_version_tag(self.name, number, ROLLED_BACK_TAG))
                self._move(chosen.number, now.champion, still_held)
                self._tag(chosen.number, PROMOTED_BY_TAG, BY_HAND)
        return now

    def roll_back(self) -> Aliases:
        """Make the previous champion the champion again, and return the aliases before that.

        The one rolled back is marked, so that no scheduled run promotes it again. Nobody is ``previous`` afterwards:
        said twice by mistake, the second does nothing.

        Raises:
            PromotionError: there is no previous champion.
        """
        with self._locked() as still_held:
            now = self.aliases()
            if now.champion is None or now.previous is None:
                raise PromotionError(
                    f"registered model {self.name!r}: nothing to roll back to, the alias `{PREVIOUS}` is not set",
                    hint="any version can be made the champion with: whence champion set VERSION",
                )
            champion, previous = now.champion, now.previous
            if champion != previous:  # the same after a rollback that was killed before its last step
                self._tag(champion, ROLLED_BACK_TAG, datetime.now(UTC).isoformat(timespec="seconds"))
                self._set_alias(CHAMPION, previous, still_held)
            self._request(lambda: self._client.delete_registered_model_alias(self.name, PREVIOUS))
        return now

    def _require_current(self, candidate: Version, champion: str | None, over: str | None) -> None:
        if champion != over:
            then, now = (f"version {number}" if number else "no version" for number in (over, champion))
            raise PromotionError(
                f"version {candidate.number} of {self.name!r} is not promoted: it was compared when {then} was the "
                f"champion, and now {now} is. The comparison is stale",
                hint="run the retraining again",
            )

    def _move(self, number: str, champion: str | None, still_held: Callable[[], None]) -> None:
        """Both aliases, so that a crash in between is repaired by doing it again."""
        if champion is not None:
            self._set_alias(PREVIOUS, champion, still_held)
        self._set_alias(CHAMPION, number, still_held)
        found = self.aliases().champion
        if found != number:
            raise PromotionError(f"version {number} of {self.name!r}: somebody else made version {found} the champion")

    def _set_alias(self, alias: str, number: str, still_held: Callable[[], None]) -> None:
        still_held()
        self._request(lambda: self._client.set_registered_model_alias(self.name, alias, number))

    def _tag(self, number: str, tag: str, value: str, keep: Version | None = None) -> None:
        """Tag a version; a value that it has already according to ``keep`` stays."""
        if keep is None or tag not in keep.tags:
            self._request(lambda: self._client.set_model_version_tag(self.name, number, tag, value))

    @contextmanager
    def _locked(self) -> Iterator[Callable[[], None]]:
        """Nobody else moves an alias meanwhile; yields a check of that, for right before each move."""
        about = f"Somebody is changing the champion of {self.name} at this moment."
        with Lock(self._client, f"{self.name}.promotion", about, self._request).held() as is_held:

            def still_held() -> None:
                if not is_held():
                    raise PromotionError(
                        f"registered model {self.name!r}: another promotion took over", hint="run this one again"
                    )

            yield still_held

    def _request(self, action: Callable[[], T]) -> T:
        with explained(self.address):
            return retrying(action, self._seconds)

    def _look_up(self, action: Callable[[], T]) -> T | None:
        """The result, or None where MLflow says that there is no such thing."""
        return self._request(none_if_absent(action))


def _version(version: ModelVersion) -> Version:
    return Version(
        str(version.version),
        str(version.source),
        int(version.creation_timestamp),
        dict(version.tags),
        str(version.run_id),
    )
