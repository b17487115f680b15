"""Compile the pipeline of a profile into the YAML that Kubeflow takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from kfp.compiler import Compiler

from whence.config import Config, is_address
from whence.config_file import OUTPUT_PATHS, get_dotted, inline_prompts, load_config, parse_config, read_settings
from whence.pipelines.graphs.catalog import PipelineKind, stages_of
from whence.pipelines.graphs.check import HOURS, check_pipeline
from whence.pipelines.graphs.placement import Placement
from whence.pipelines.graphs.size import check_size
from whence.running.checks import check_portable
from whence.stages import check_stage_names, stage


def portable_config(profile: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The profile as it can travel: prompts inlined, paths as written, and no folder of this machine to write to.

    A relative ``general.work_dir`` or ``models.finetuned.path`` is a folder of the machine that runs it; in a pod it
    would be lost with the pod, or lie on a read-only root. An absolute one, a mounted volume, is kept.

    Raises:
        ConfigError: the profile or its prompts file cannot be used.
    """
    config = inline_prompts(load_config(profile, overrides))
    check_portable(config)
    portable: dict[str, Any] = {"prompts": config.prompts.model_dump(mode="json")}
    if is_address(profile):  # what lies beside it is at an address, too
        portable |= {f"dataset.{name}": getattr(config.dataset, name) for name in ("train_files", "eval_files")}
    config = parse_config(read_settings(profile), {**(overrides or {}), **portable}, origin=str(profile))
    here = {key: None for key in OUTPUT_PATHS if not Path(get_dotted(config, key) or "/").is_absolute()}
    return parse_config(config.to_yaml(), here) if here else config


def compile_pipeline(
    profile: str | Path,
    output: Path,
    overrides: Mapping[str, Any] | None = None,
    kind: PipelineKind = PipelineKind.ATTRIBUTION,
) -> Config:
    """Write the compiled pipeline of ``profile`` to ``output`` and return the configuration baked into it.

    Raises:
        ConfigError: the settings cannot be used, or cannot travel.
        PipelineError: a run would be too large for Argo.
    """
    config = portable_config(profile, overrides)
    check_stage_names(config)
    pipeline = kind.build(config, Placement.of(config))
    documents = [MessageToDict(spec) for spec in (pipeline.pipeline_spec, pipeline.platform_spec)]
    check_size(documents, config.general.parallel_tasks or 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(pipeline, str(output))
    return config


def compile_check(profile: str | Path, output: Path, overrides: Mapping[str, Any] | None, kind: PipelineKind) -> Config:
    """As :func:`compile_pipeline`, but the pipeline that tries what that pipeline needs."""
    config = portable_config(profile, overrides)
    check_stage_names(config)
    stages = stages_of(kind.build(config))
    cluster = config.cluster
    tried = {
        name: cluster.resources(name, stage(name).gpu).model_copy(update={"retries": 1, "timeout_hours": HOURS})
        for name in stages
    }
    once = config.model_copy(update={"cluster": cluster.model_copy(update={"stages": tried})})
    Compiler().compile(check_pipeline(once, stages, Placement.of(once)), str(output))
    return config


def local_record_note(config: Config) -> str | None:
    """A warning for a pipeline whose record would be lost with its pods; None when it would not."""
    if not config.tracking.uri.startswith("sqlite:"):
        return None
    return (
        f"note: {config.tracking.uri} would be a file inside each pod; give the form's tracking_uri the address of an "
        "MLflow server, or compile with --set tracking.uri=..."
    )
