"""What the bodies of the Kubeflow components need inside their images, without kfp: the form, and artifact metadata.

A compiled pipeline shows the settings people change most as a form of plain parameters; everything else is baked into
it or comes through its one parameter ``overrides``. A Kubeflow form cannot say *null*, so parameters of settings that
may be null say it with ``0`` (numbers) or an empty field (text), which those settings refuse as values of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from whence.config import Config
from whence.config_file import dotted_keys, get_dotted
from whence.errors import ConfigError
from whence.files import digests


class Parameter(NamedTuple):
    """One field of the form: the setting behind it, its plain type, and whether the setting may be null."""

    key: str
    type: type
    nullable: bool = False


PARALLEL_TASKS = "parallel_tasks"  # only in the form of pipelines that are made for it
FORM = {
    "base_model_name": Parameter("models.base.name", str),
    "base_model_revision": Parameter("models.base.revision", str, nullable=True),
    "dataset_name": Parameter("dataset.name", str, nullable=True),
    "dataset_revision": Parameter("dataset.revision", str, nullable=True),
    "num_samples": Parameter("dataset.num_samples", int, nullable=True),
    "num_eval_samples": Parameter("dataset.num_eval_samples", int, nullable=True),
    "max_length": Parameter("general.max_length", int),
    "num_train_epochs": Parameter("training.num_train_epochs", float),
    "learning_rate": Parameter("training.learning_rate", float),
    "per_device_train_batch_size": Parameter("training.per_device_train_batch_size", int),
    "factors_strategy": Parameter("factors.strategy", str),
    "factors_num_samples": Parameter("factors.num_samples", int, nullable=True),
    "inspection_layer": Parameter("inspection.layer", int),
    "query_gradient_low_rank": Parameter("scores.query_gradient_low_rank", int, nullable=True),
    "use_generated": Parameter("scores.use_generated", str),  # text, since besides true and false there is both
    "max_new_tokens": Parameter("generation.max_new_tokens", int),
    "run_mmlu": Parameter("evaluation.mmlu.enabled", bool),
    "mmlu_tasks": Parameter("evaluation.mmlu.tasks", list),
    PARALLEL_TASKS: Parameter("general.parallel_tasks", int, nullable=True),
    "seed": Parameter("general.seed", int),
    "tracking_uri": Parameter("tracking.uri", str),
    "experiment": Parameter("tracking.experiment", str),
    "registered_model": Parameter("tracking.registered_model", str),
}


def form_of(config: Config) -> dict[str, Parameter]:
    """The fields of a pipeline's form: a pipeline without parallel tasks does not ask for their number."""
    alone = config.general.parallel_tasks is None
    return {name: field for name, field in FORM.items() if not (alone and name == PARALLEL_TASKS)}


def form_default(config: Config, parameter: Parameter) -> Any:
    """The setting's value as the form shows it."""
    value = get_dotted(config, parameter.key)
    if value is None:
        return parameter.type()
    return json.dumps(value) if parameter.type is str and not isinstance(value, str) else value


def form_help(parameter: Parameter) -> str:
    """The setting's help text with its key, and with the form's word for null."""
    text = dotted_keys()[parameter.key]
    if parameter.nullable:
        blank = "empty" if parameter.type is str else "0"
        text = text.replace("null", blank) if "null" in text else f"{text.rstrip('.')}; {blank} for none."
    return f"{text.rstrip('.')} [{parameter.key}]."


def merge_form(form: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key: those of the form (what else is in ``form`` is passed over), then the overrides.

    Raises:
        ConfigError: an override sets what the form has a parameter for, so that one of the two would be ignored.
    """
    settings = {}
    for name, (key, _, nullable) in FORM.items():
        for override in overrides:
            if key == override or key.startswith(f"{override}."):
                raise ConfigError(f"overrides: {override} would hide the parameter {name} ({key}); set {name} instead")
        settings[key] = None if nullable and not form[name] else form[name]
    return settings | dict(overrides)


class Artifact(Protocol):
    """The part of ``kfp.dsl.Artifact`` used here."""

    path: str
    metadata: dict[str, Any]


class Metrics(Protocol):
    """The part of ``kfp.dsl.Metrics`` used here."""

    def log_metric(self, metric: str, value: float) -> None: ...


def log_metrics(artifact: Metrics, metrics: Mapping[str, float]) -> None:
    """Show scalars in the Kubeflow UI; NaN and infinity have no place in its JSON and are left out."""
    for name, value in metrics.items():
        if math.isfinite(value):
            artifact.log_metric(name, value)


def link_to_mlflow(artifact: Artifact, url: str | None) -> None:
    """Write the way from the Kubeflow UI to the record of the run, as Markdown; ``url`` is None where there is none."""
    text = f"[This run in MLflow]({url})" if url else "No link: recorded in a local file, or MLflow did not answer yet."
    Path(artifact.path).write_text(text + "\n", encoding="utf-8")


def describe_dataset(artifact: Artifact) -> None:
    """Copy what identifies a dataset into the artifact's metadata, where the Kubeflow UI shows it."""
    info = json.loads((Path(artifact.path) / "dataset.json").read_text(encoding="utf-8"))
    artifact.metadata.update({name: info[name] for name in ("split", "source", "rows", "fingerprint")})


def describe_model(artifact: Artifact) -> None:
    """Say in the artifact's metadata how the model is stored and which weights it has (sha256 per file)."""
    artifact.metadata["framework"] = "transformers"
    artifact.metadata["sha256"] = {
        name: sha for name, sha in digests(Path(artifact.path)).items() if name.endswith(".safetensors")
    }
