"""One at a time at an MLflow server, which has no locks of its own.

Names of registered models are unique in its database, so that of two who create one only one succeeds: for the moments
of a lock an empty registered model exists. A holder that was killed leaves it behind; whoever has seen the same one for
``ABANDONED_SECONDS`` takes it over. The window that is left is a holder that sleeps that long between its last look at
the lock, right before what it does under it, and doing that.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from whence.errors import TrackingError
from whence.tracking.faults import none_if_absent

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOLDER_TAG = "whence.holder"
ABANDONED_SECONDS = 15.0  # what is done under a lock takes a tenth of a second
POLL_SECONDS = 0.2
# That a name is taken; the second where its holder gave it up while MLflow looked up what it is taken by.
TAKEN = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")


class Lock:
    """A lock by its name.

    Args:
        about: what is happening while it is held, for people who see it in the registry.
        request: makes a request of the client, and may repeat it.
    """

    def __init__(
        self, client: MlflowClient, name: str, about: str, request: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._client, self._name, self._about, self._request = client, name, about, request
        self._own = uuid.uuid4().hex

    @contextmanager
    def held(self) -> Iterator[Callable[[], bool]]:
        """Wait for the lock and hold it; yields a check whether it still is, for right before each deed."""
        seen, since = None, time.monotonic()
        while not self._create():
            holder = self._holder()
            if holder == self._own:  # made by an attempt whose answer got lost
                break
            if holder != seen:
                seen, since = holder, time.monotonic()
            elif holder is not None and time.monotonic() - since > ABANDONED_SECONDS:
                self._remove()
            time.sleep(POLL_SECONDS)
        try:
            yield lambda: self._holder() == self._own
        finally:
            with suppress(TrackingError):  # left behind it is taken over
                if self._holder() == self._own:
                    self._remove()

    def _create(self) -> bool:
        from mlflow.exceptions import MlflowException

        def create() -> bool:
            try:
                self._client.create_registered_model(self._name, {HOLDER_TAG: self._own}, self._about)
            except MlflowException as error:
                if error.error_code not in TAKEN:
                    raise
                return False
            return True

        return bool(self._request(create))

    def _holder(self) -> str | None:
        model = self._request(none_if_absent(lambda: self._client.get_registered_model(self._name)))
        return model.tags.get(HOLDER_TAG, "") if model else None

    def _remove(self) -> None:
        self._request(none_if_absent(lambda: self._client.delete_registered_model(self._name)))
