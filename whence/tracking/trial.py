"""A trial of the tracking server: what a run will ask of it, asked in seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from whence.config import Config
from whence.errors import TrackingError
from whence.tracking.address import Address
from whence.tracking.faults import explained
from whence.tracking.run import check_tracking
from whence.tracking.server import MlflowServer, open_client

NAME, FILE = "whence check", "check.txt"


def try_tracking(config: Config) -> str:
    """Record a run with a file, read the file back, delete the run; of a sqlite file only see that it can be written.

    Returns:
        what was tried, in words.

    Raises:
        TrackingError: no server answers, or it refuses any of it.
    """
    check_tracking(config)
    address = Address.parse(config.tracking.uri)
    if address.database is not None:
        return f"{address.uri} can be written"
    with explained(address), tempfile.TemporaryDirectory() as folder:
        client = open_client(address)
        experiment = MlflowServer(address, config.tracking.experiment).experiment_id
        run = client.create_run(experiment, run_name=NAME).info.run_id
        try:
            client.log_text(run, NAME, FILE)
            read = Path(client.download_artifacts(run, FILE, folder)).read_text(encoding="utf-8")
        finally:
            client.delete_run(run)
    if read != NAME:
        raise TrackingError(f"tracking.uri: MLflow at {address.uri} gave back another file than it was given")
    return f"{address.uri} keeps runs and files in experiment {config.tracking.experiment}"
