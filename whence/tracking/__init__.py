"""MLflow: one parent run per pipeline run, one nested run per stage.

A server that is down when a pipeline starts is an error (:func:`check_tracking`). One that goes down later costs no
results: a call is retried for ``tracking.retry_seconds``, then kept on disk and uploaded at the end of the stage, by
the next stage that starts from the same folder, or by :func:`upload_spool`. Every call can be repeated without a trace
(metrics carry their own time stamps; runs and models are looked up by a key before they are made), so a call whose
answer got lost is not recorded twice.

``registry`` knows which version of the registered model is the champion, ``settle`` how the run of a pipeline ends.
mlflow is imported when the first stage run opens, not before.
"""

from whence.tracking.run import StageRun, check_tracking, settle_run, stage_run, upload_spool
from whence.tracking.trial import try_tracking

__all__ = ["StageRun", "check_tracking", "settle_run", "stage_run", "try_tracking", "upload_spool"]
