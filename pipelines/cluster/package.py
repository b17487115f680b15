"""A compiled pipeline as it is uploaded: its name, the version its content is, and the parameters of its form."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from whence.config_file import parse_config, unpack
from whence.errors import PipelineError
from whence.pipelines.graphs.size import check_size
from whence.running.checks import check_portable
from whence.running.form import merge_form
from whence.yaml_text import read_yaml

DIGEST = 12  # hexadecimal digits of a content hash in a version's name
NAME_LENGTH = 100  # Kubeflow takes 127 characters for a version, which is the pipeline's name and the digest
TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        file: the YAML.
        name: of the pipeline in Kubeflow, from its display name: ``Whence: demo`` is ``whence-demo``.
        version: ``name`` with a hash of the content, the same for the same content however it is written.
        description: what the pipeline is for.
        parameters: the fields of the form by name, as the compiled pipeline defines them.
        settings: the settings it was compiled with, packed; None for a pipeline that is not one of Whence.
        documents: all of it, parsed.
    """

    file: Path
    name: str
    version: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]
    settings: str | None
    documents: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, file: Path, name: str | None = None) -> Package:
        """Read a compiled pipeline; ``name`` replaces the one it has.

        Raises:
            PipelineError: it cannot be read, or is not a compiled pipeline.
        """
        try:
            # libyaml takes tenths of a second where PyYAML's own parser takes seconds
            documents = list(yaml.load_all(file.read_text(encoding="utf-8"), yaml.CSafeLoader))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise PipelineError(f"{file}: cannot be read as YAML: {error}") from error
        if not documents or not isinstance(documents[0], dict) or not {"pipelineInfo", "root"} <= documents[0].keys():
            raise PipelineError(f"{file}: is not a compiled pipeline", hint=f"make one with `whence compile -o {file}`")
        info, root = documents[0]["pipelineInfo"], documents[0]["root"]
        name = _slug(name or info.get("displayName") or info["name"])
        # The bytes of a compiled pipeline differ from one compilation to the next; what they say does not.
        content = json.dumps(documents, sort_keys=True, separators=(",", ":")).encode()
        return cls(
            file=file,
            name=name,
            version=f"{name}-{hashlib.sha256(content).hexdigest()[:DIGEST]}",
            description=str(info.get("description", "")),
            parameters=root.get("inputDefinitions", {}).get("parameters", {}),
            settings=_constant(root, "dag", "tasks", "prepare", "inputs", "parameters", "settings"),
            documents=documents,
        )

    def arguments(self, values: Sequence[str]) -> dict[str, Any]:
        """``name=value`` texts as arguments of the form, each of its field's type.

        Raises:
            PipelineError: a field is unknown or given twice, a value is not of its type, or a field without a default
                is left out.
            ConfigError: the settings of the pipeline cannot be used with these values, or cannot travel.
        """
        arguments: dict[str, Any] = {}
        for text in values:
            name, separator, value = text.partition("=")
            if not separator:
                raise PipelineError(f"--param {text}: is not of the form name=value")
            if name in arguments:
                raise PipelineError(f"--param {name}: is given twice")
            arguments[name] = self._argument(name, value)
        missing = [
            name
            for name, field in self.parameters.items()
            if name not in arguments and "defaultValue" not in field and not field.get("isOptional")
        ]
        if missing:
            raise PipelineError(
                f"pipeline {self.name}: has no default for {', '.join(missing)}", hint="give --param NAME=VALUE"
            )
        if self.settings is not None:  # as `prepare` will, but before the cluster is asked for anything
            form = {name: field["defaultValue"] for name, field in self.parameters.items() if "defaultValue" in field}
            filled = form | arguments
            overrides = merge_form(filled, filled.get("overrides") or {})
            origin = f"pipeline {self.name} with these values of its form"
            config = parse_config(unpack(self.settings), overrides, origin=origin)
            check_portable(config)
            check_size(self.documents, config.general.parallel_tasks or 1)
        return arguments

    def _argument(self, name: str, text: str) -> Any:
        field = self.parameters.get(name)
        if field is None:
            near = difflib.get_close_matches(name, self.parameters, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(self.parameters)) or 'none'}"
            raise PipelineError(f"--param {name}: pipeline {self.name} has no such parameter", hint=hint)
        if "{{" in text:
            raise PipelineError(
                f"--param {name}: Kubeflow would replace what stands in {{{{ }}}}", hint="give it with --set"
            )
        kind = str(field["parameterType"])
        if kind == "STRING":
            return text
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            raise PipelineError(f"--param {name}: {text!r} is not a YAML value: {error}") from error
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            hint = "; write true or false" if kind == "BOOLEAN" else ""
            raise PipelineError(f"--param {name}: {text!r} is not of its type, {kind.lower().replace('_', ' ')}{hint}")
        return value


def _constant(value: Any, *path: str) -> str | None:
    """The constant that a compiled pipeline gives to the parameter at ``path``."""
    for key in (*path, "runtimeValue", "constant"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _slug(name: str) -> str:
    """A name that Kubeflow also takes where it keeps pipelines as Kubernetes objects."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:NAME_LENGTH].rstrip("-")
    if not slug:
        raise PipelineError(
            f"pipeline name {name!r}: has no letter or digit of a-z, 0-9", hint="give --pipeline-name NAME"
        )
    return slug
