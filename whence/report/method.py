"""The foot of the report: exact settings, fingerprints and versions, and how to get the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from whence.report.material import Material

SHOWN = ("general", "models", "dataset", "training", "factors", "scores", "generation", "evaluation")


def settings_of(material: Material) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of names and values: fingerprints, versions, then every setting that decides the result."""
    origin = material.origin
    prints = {name: origin[name] for name in ("model", "tokenizer", "train_data", "factors") if origin.get(name)}
    if material.evidence is not None:
        prints |= {f"evidence: {name}": value for name, value in material.evidence.fingerprints.items()}
    groups = [("Fingerprints (sha256)", _pairs(prints)), ("Versions", _pairs(origin.get("versions", {})))]
    values = material.config.model_dump(mode="json", include=set(SHOWN))
    groups += [(section, _pairs(_flat(values[section]))) for section in SHOWN]
    if material.evidence is not None and material.evidence.settings:
        groups.append(("evidence", _pairs(_flat(material.evidence.settings))))
    return [(name, pairs) for name, pairs in groups if pairs]


def reproduction(material: Material) -> str:
    """The commands that make this report again."""
    profile = material.config.profile
    return "\n".join(
        [
            "# config.yaml is the output `config` of the stage prepare: every value explicit, the prompts inside",
            "whence run --config config.yaml",
            "# or, where the profile has not changed since:",
            f"whence run --profile {profile}",
        ]
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in values.items()
    ]
