"""Read a settings file: YAML and overrides by dotted key become a :class:`~whence.config.Config`, or a clear error."""

from __future__ import annotations

import base64
import bz2
import difflib
import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from whence.config import S3_SCHEME, Config, is_address
from whence.errors import ConfigError
from whence.files import unique_keys
from whence.yaml_text import read_yaml, write_yaml


def load_config(config_file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, apply ``overrides`` (dotted keys) and validate.

    Relative paths of inputs (data, prompts, model folders) are taken from the file's own folder, those of outputs
    (``general.work_dir``, ``models.finetuned.path``) from the current one.

    Args:
        config_file: a local path or an ``s3://`` address.

    Raises:
        ConfigError: the file cannot be read, is not a YAML mapping, or does not validate.
    """
    is_local = not is_address(config_file)
    folder = Path(config_file).resolve().parent if is_local else str(config_file).rpartition("/")[0]
    return parse_config(read_settings(config_file), overrides, origin=str(config_file), folder=folder)


def read_settings(config_file: str | Path) -> str:
    """The YAML text of a settings file, local or at ``s3://``.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return _read_text(config_file, "--config")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {config_file}: {error.strerror}", hint="give an existing YAML file"
        ) from error


def parse_config(
    yaml_text: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    origin: str = "configuration",
    folder: Path | str | None = None,
) -> Config:
    """Validate ``yaml_text`` with ``overrides`` applied.

    Args:
        overrides: values by dotted key.
        origin: what error messages call the text.
        folder: where relative paths start, a local folder or an ``s3://`` address; None keeps them as they are.

    Raises:
        ConfigError: it is not a YAML mapping, or does not validate.
    """
    try:
        values = read_yaml(yaml_text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must be a YAML mapping of sections, found {type(values).__name__}")
    for key, value in (overrides or {}).items():
        _set_dotted(values, key, value)
    if folder is not None:
        _anchor_paths(values, folder)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error


def parse_override(text: str) -> tuple[str, Any]:
    """``key.path=value`` with the value read as YAML: ``training.bf16=false`` -> ``("training.bf16", False)``."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {text!r} is not of the form section.key=value")
    try:
        parsed = read_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {key.strip()}: {value!r} is not a YAML value: {error}") from error
    return key.strip(), parsed


def pack(config: Config) -> str:
    """The settings that differ from their defaults, compressed to one word: the argument of a pipeline's first task.

    Kubeflow keeps it a dozen times per run. Letters and digits come through Argo as they are, where ``{{inputs...}}``
    in a prompt would be replaced; and bzip2 gives the same on every machine, where zlib does not.
    """
    text = write_yaml(config.model_dump(mode="json", exclude_defaults=True))
    return base64.b64encode(bz2.compress(text.encode())).decode()


def unpack(settings: str) -> str:
    """What :func:`pack` has packed, as YAML text.

    Raises:
        ConfigError: it is something else.
    """
    try:
        return bz2.decompress(base64.b64decode(settings, validate=True)).decode()
    except (ValueError, OSError) as error:
        raise ConfigError(
            "settings: are not as this version compiles them", hint="compile the pipeline again"
        ) from error


def inline_prompts(config: Config, *, from_storage: bool = False) -> Config:
    """The same configuration with the content of its prompts file in ``prompts.items``, so that it needs no other file.

    Prompts at ``s3://`` stay there unless ``from_storage``: a compiled pipeline is to read those of the day it runs.
    """
    path = config.prompts.path
    if path is None or (is_address(path) and not from_storage):
        return config
    try:
        items = json.loads(_read_text(path, "prompts.path"), object_pairs_hook=unique_keys)
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompts.path: cannot read {path} as JSON: {error}") from error
    return parse_config(config.to_yaml(), {"prompts": {"items": items}})


def _read_text(path: str | Path, setting: str) -> str:
    if is_address(path):
        from whence import s3  # with boto3, which settings in files do not need

        return s3.read_text(str(path), setting, ConfigError)
    return Path(path).read_text(encoding="utf-8-sig")


def dotted_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Every setting's dotted key with its help text, in the order of the YAML."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= dotted_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = field.description or ""
    return keys


def get_dotted(config: BaseModel, key: str) -> Any:
    """The value at a dotted key, e.g. ``get_dotted(config, "training.learning_rate")``."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


OUTPUT_PATHS = ("general.work_dir", "models.finetuned.path")
_INPUT_PATHS = ("prompts.path", "dataset.train_files", "dataset.eval_files")
_NAMES_OR_PATHS = ("models.base.name", "evaluation.mmlu.source")  # anchored only where such a path exists


def _anchor_paths(values: dict[str, Any], folder: Path | str) -> None:
    for key in (*OUTPUT_PATHS, *_INPUT_PATHS, *_NAMES_OR_PATHS):
        *parents, last = key.split(".")
        section: Any = values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or not section.get(last):
            continue
        start = Path.cwd() if key in OUTPUT_PATHS else folder
        value, must_exist = section[last], key in _NAMES_OR_PATHS
        anchored = [_anchor(item, start, must_exist) for item in (value if isinstance(value, list) else [value])]
        section[last] = anchored if isinstance(value, list) else anchored[0]


def _anchor(value: Any, folder: Path | str, must_exist: bool) -> Any:
    if not isinstance(value, str) or "://" in value or value.startswith("builtin:"):
        return value
    if isinstance(folder, str):  # an address
        if must_exist or value.startswith(("/", "~")):
            return value
        return S3_SCHEME + posixpath.normpath(f"{folder.removeprefix(S3_SCHEME)}/{value}")
    path = (folder / Path(value).expanduser()).resolve()
    return value if must_exist and not path.exists() else str(path)


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    section = values
    for depth, parent in enumerate(parents):
        child = section.setdefault(parent, {})
        if child is None:
            child = section[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {key}: {'.'.join(parents[: depth + 1])} is a value, not a section")
        section = child
    section[last] = value


def _explain(error: ValidationError, origin: str) -> str:
    known = list(dotted_keys())
    lines = []
    for problem in error.errors():
        key, value = _key_path(problem["loc"]), problem["input"]
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "; `whence config show` lists the keys"
            lines.append(f"{key}: unknown key{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: required, but missing")
        elif problem["type"] == "value_error":
            lines.append(f"{key + ': ' if key else ''}{problem['ctx']['error']}")
        elif problem["type"] == "string_type" and isinstance(value, bool | int | float):
            kind = "a truth value" if isinstance(value, bool) else "a number"
            what = "as a key is" if problem["loc"][-1] == "[key]" else "is"
            lines.append(f"{key}: {json.dumps(value)} {what} {kind} in YAML, not text; put it in quotes")
        else:
            lines.append(f"{key}: {problem['msg']}, got {value!r}")
    return f"{origin} cannot be used:\n" + "\n".join(f"  - {line}" for line in dict.fromkeys(lines))


def _key_path(location: Sequence[int | str]) -> str:
    """pydantic's location without the names of union branches it appends (``bool``, ``literal['auto']``)."""
    parts: list[str] = []
    kind: Any = Config
    for part in location:
        kind = next((one for one in (kind, *get_args(kind)) if get_origin(one) is dict or _fields(one)), None)
        if kind is None:
            break
        parts.append(str(part))
        kind = get_args(kind)[1] if get_origin(kind) is dict else getattr(_fields(kind).get(part), "annotation", None)
    return ".".join(part for part in parts if part != "[key]")


def _fields(kind: Any) -> dict[Any, Any]:
    return getattr(kind, "model_fields", {})
