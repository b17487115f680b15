"""What the Kubeflow components call inside their images: one stage, on kfp's artifacts. Without kfp's SDK."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from whence.environment import strip_secrets
from whence.errors import PipelineError, WhenceError, message_of, trace_of
from whence.files import digest
from whence.running.declaration import Artifact, Kind
from whence.running.runner import StageResult, hand_on_failure, run_stage
from whence.stages import stage as declaration_of

logger = logging.getLogger(__name__)


class KfpArtifact(Protocol):
    """The part of ``kfp.dsl.Artifact`` used here."""

    path: str
    uri: str
    metadata: dict[str, Any]


@contextmanager
def _in_words() -> Iterator[None]:
    """Let a task end with one line that says why. The rest is in its log, which outlives its pod; no secret is."""
    strip_secrets()
    try:
        yield
    except Exception as error:
        if not isinstance(error, WhenceError):
            print(trace_of(error), file=sys.stderr)
        print(f"Error: {message_of(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


@_in_words()
def run_component(name: str, arguments: Mapping[str, Any]) -> Any:
    """Run a stage on the arguments of its component, and show the result in the Kubeflow UI.

    Args:
        name: the stage.
        arguments: the component's arguments by name: kfp's artifacts, plain values, and the paths of those results
            that the component does not return.

    Returns:
        the result that the component itself returns, where it does: the one without a path among the arguments.
    """
    stage = declaration_of(name)
    inputs = {artifact.name: _paths(arguments.get(artifact.name)) for artifact in stage.inputs}
    outputs = {artifact.name: Path(arguments[artifact.name].path) for artifact in stage.outputs}
    parameters = {one.name: arguments[one.name] for one in stage.parameters if one.name in arguments}
    try:
        result = run_stage(stage, inputs=inputs, outputs=outputs, parameters=parameters)
    except Exception as error:
        if not stage.side:
            raise
        # Kubeflow keeps nothing of a task that fails, nor runs what comes after it: this one succeeds, and says so.
        logger.exception("%s failed; the run goes on without it, and fails once its report is stored", stage.title)
        hand_on_failure(stage, error, Path(arguments[stage.inputs[0].name].path), outputs)
        result = StageResult({})
    for artifact in stage.outputs:
        _describe(artifact, arguments[artifact.name], result)
    returned = None
    for parameter in stage.returns:
        value = result.returns[parameter.name]
        if parameter.name in arguments:
            text = value if isinstance(value, str) else json.dumps(value)
            Path(arguments[parameter.name]).write_text(text, encoding="utf-8")
        else:
            returned = value
    return returned


@_in_words()
def run_checks(name: str, settings: KfpArtifact) -> None:
    """Print what :func:`whence.running.cluster_checks.look` finds in the image of the stage ``name``; fail if it must.

    Args:
        settings: the artifact of :func:`write_settings`, which an earlier task has stored.
    """
    from whence.config_file import parse_config
    from whence.running.cluster_checks import Place, look

    config = parse_config(Path(settings.path).read_text(encoding="utf-8"))
    failed = []
    for outcome in look(Place(config, declaration_of(name), settings.uri)):
        print(outcome, flush=True)
        failed += [] if outcome.passed else [outcome.check]
    if failed:
        raise PipelineError(f"{name}: {', '.join(failed)} failed", hint="what was found is above")


@_in_words()
def tell(variable: str, profile: str, run: str, page: str, state: str) -> None:
    """Tell a webhook how a run ended: JSON with ``text``, as chat services show it, and its parts.

    Args:
        variable: holds the webhook's address, which is as good as a key.
        page: where the run is shown; empty where nobody knows.
        state: as Kubeflow calls it, e.g. ``SUCCEEDED``.

    Raises:
        PipelineError: the webhook cannot be reached, or refuses.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    words = f"Whence {profile}: the run {state.lower()} {page or run}"
    told = {"text": words, "profile": profile, "run": run, "state": state, "page": page}
    with requests.Session() as session:
        session.mount("http", HTTPAdapter(max_retries=Retry(3, backoff_factor=2, allowed_methods=None)))
        try:
            session.post(os.environ[variable], json=told, timeout=30).raise_for_status()
        except requests.RequestException as error:  # its text has the address
            status = "" if error.response is None else f" {error.response.status_code}"
            raise PipelineError(f"the webhook in {variable} was not told: {type(error).__name__}{status}") from None


def _paths(value: KfpArtifact | list[KfpArtifact] | None) -> Path | list[Path] | None:
    if isinstance(value, list):
        return [Path(artifact.path) for artifact in value]
    return None if value is None else Path(value.path)


def _describe(artifact: Artifact, shown: KfpArtifact, result: StageResult) -> None:
    """What the UI shows of an output: scalars where runs are compared, the content of a dataset, a model's weights.

    NaN and infinity have no place in the UI's JSON and are left out.
    """
    folder = Path(shown.path)
    if artifact.kind is Kind.METRICS:
        shown.metadata.update({name: value for name, value in result.metrics.items() if math.isfinite(value)})
    if artifact.kind is Kind.DATASET and (folder / "dataset.json").is_file():
        info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        shown.metadata.update({key: info[key] for key in ("split", "source", "rows", "fingerprint")})
    if artifact.kind is Kind.MODEL:
        shown.metadata["sha256"] = {file.name: digest(file) for file in sorted(folder.glob("*.safetensors"))}
    if result.pipeline_url is not None:
        shown.metadata["mlflow"] = result.pipeline_url
