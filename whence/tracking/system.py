"""CPU, memory, disk, network and GPU of the machine while a stage runs, by MLflow's own monitor."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


class SystemMetrics:
    """The monitor of one run. Its samples are neither retried nor kept for later: a gap in them is no loss of results.

    MLflow's own variables say whether and how often: ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` (here on unless it says
    false), ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` (10 seconds).
    """

    def __init__(self) -> None:
        self._monitor: SystemMetricsMonitor | None = None

    def start(self, uri: str, run_id: str) -> None:
        """Sample from now on; called again, as after the server was away, it goes on where it was."""
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
        from mlflow.system_metrics import system_metrics_monitor

        self.stop()
        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            return
        # Whether the server answers is said once, by the run, and not for every sample.
        logging.getLogger(system_metrics_monitor.__name__).setLevel(logging.CRITICAL)
        self._monitor = system_metrics_monitor.SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def stop(self) -> None:
        """Deliver what was sampled and end."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
