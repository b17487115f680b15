"""Names and values as MLflow takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as parameters with dotted names; what is no text becomes JSON."""
    result: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            result[name_of(f"{prefix}{key}")] = text_of(text)
    return result


def name_of(key: str) -> str:
    """What MLflow accepts as a name: letters, digits, and ``_ - . space /``, at most 250 characters."""
    return re.sub(r"[^\w\-. /]", "_", key, flags=re.ASCII)[:250]


def text_of(value: Any) -> str:
    """Text that every database takes: lone surrogates and NUL characters replaced."""
    return str(value).encode("utf-8", "replace").decode("utf-8").replace("\x00", "\N{REPLACEMENT CHARACTER}")


def quotable(value: str | None) -> str | None:
    """A run id that can stand in a search filter; None when there is none."""
    return re.sub(r"[^\w\-.:/ ]", "_", value) or None if value else None
