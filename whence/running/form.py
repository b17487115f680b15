"""The form of a pipeline in the Kubeflow UI: which settings it shows, and how it says *null*.

A compiled pipeline shows the settings people change most as a form of plain parameters; everything else is baked into
it or comes through its one parameter ``overrides``. A Kubeflow form cannot say *null*, so parameters of settings that
may be null say it with ``0`` (numbers) or an empty field (text), which those settings refuse as values of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from whence.config import Config
from whence.config_file import dotted_keys, get_dotted
from whence.errors import ConfigError


class Field(NamedTuple):
    """One field of the form: the setting behind it, its plain type, and whether the setting may be null."""

    key: str
    type: type
    nullable: bool = False


PARALLEL_TASKS = "parallel_tasks_0_for_none"  # only in the form of pipelines that are made for it
MMLU_ENABLED = "mmlu_enabled"
# Kubeflow shows a form by alphabet, and names alone: so they are grouped by how they begin, and say what 0 means.
FORM = {
    "base_model_name": Field("models.base.name", str),
    "base_model_revision": Field("models.base.revision", str, nullable=True),
    "data_eval_rows_0_for_all": Field("dataset.num_eval_samples", int, nullable=True),
    "data_max_tokens": Field("general.max_length", int),
    "data_name": Field("dataset.name", str, nullable=True),
    "data_revision": Field("dataset.revision", str, nullable=True),
    "data_train_rows_0_for_all": Field("dataset.num_samples", int, nullable=True),
    "finetune_batch_size": Field("training.per_device_train_batch_size", int),
    "finetune_epochs": Field("training.num_train_epochs", float),
    "finetune_learning_rate": Field("training.learning_rate", float),
    "generate_max_new_tokens": Field("generation.max_new_tokens", int),
    "influence_factors_rows_0_for_all": Field("factors.num_samples", int, nullable=True),
    "influence_factors_strategy": Field("factors.strategy", str),
    "influence_own_answers": Field("scores.use_generated", str),  # text, since besides true and false there is both
    "influence_plotted_layer": Field("inspection.layer", int),
    "influence_query_rank_0_for_full": Field("scores.query_gradient_low_rank", int, nullable=True),
    MMLU_ENABLED: Field("evaluation.mmlu.enabled", bool),
    "mmlu_subjects": Field("evaluation.mmlu.tasks", list),
    PARALLEL_TASKS: Field("general.parallel_tasks", int, nullable=True),
    "seed": Field("general.seed", int),
    "tracking_experiment": Field("tracking.experiment", str),
    "tracking_registered_model": Field("tracking.registered_model", str),
    "tracking_uri": Field("tracking.uri", str),
}
GUIDE = (
    "In the form, base_model and data are what goes in, finetune, generate, influence and mmlu the steps of the work, "
    "gpu where they run, tracking where they are recorded; an empty field stands for none; overrides takes any other "
    "setting by its dotted key."
)


def form_of(config: Config) -> dict[str, Field]:
    """The fields of a pipeline's form: a pipeline without parallel tasks does not ask for their number."""
    alone = config.general.parallel_tasks is None
    return {name: field for name, field in FORM.items() if not (alone and name == PARALLEL_TASKS)}


def form_default(config: Config, field: Field) -> Any:
    """The setting's value as the form shows it."""
    value = get_dotted(config, field.key)
    if value is None:
        return field.type()
    return json.dumps(value) if field.type is str and not isinstance(value, str) else value


def form_help(field: Field) -> str:
    """The setting's help text with its key, and with the form's word for null."""
    text = dotted_keys()[field.key]
    if field.nullable:
        blank = "empty" if field.type is str else "0"
        text = text.replace("null", blank) if "null" in text else f"{text.rstrip('.')}; {blank} for none."
    return f"{text.rstrip('.')} [{field.key}]."


def merge_form(form: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key: those of the form (other names are passed over), then the overrides.

    Raises:
        ConfigError: an override sets what the form has a parameter for, so that one of the two would be ignored.
    """
    settings = {}
    for name, (key, _, nullable) in FORM.items():
        if name not in form:
            continue
        for override in overrides:
            if key == override or key.startswith(f"{override}."):
                raise ConfigError(
                    f"overrides: {override} would hide the parameter {name} ({key})", hint=f"set {name} instead"
                )
        settings[key] = None if nullable and not form[name] else form[name]
    return settings | dict(overrides)
