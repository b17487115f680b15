"""What all pages share: templates that escape everything, and text that cannot disguise itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Control characters and lone surrogates cannot stand in HTML; direction marks make text read as something else
# (CVE-2021-42574). Scripts written from right to left need none of them: elements with text have dir="auto".
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def visible(text: str) -> str:
    """``text`` with a replacement character for each one that would not be seen, or would make others lie."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def json_for_script(data: Any) -> Markup:
    """``data`` as JSON that stays inside its ``<script>`` element, whatever its strings hold."""
    text = json.dumps(_visible(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_IN_SCRIPT))


@cache
def environment() -> Environment:
    """The templates of this package; text is escaped, and an unknown name is an error."""
    return Environment(
        loader=PackageLoader("whence.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )


def no_formula(text: str) -> str:
    """``text`` as a spreadsheet takes it for text, whatever it begins with."""
    return f"'{text}" if text.startswith(_FORMULA_SIGNS) else text


def paragraphs(text: str) -> list[str]:
    """The parts of ``text`` between blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _visible(data: Any) -> Any:
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, Mapping):
        return {visible(str(key)): _visible(value) for key, value in data.items()}
    if isinstance(data, Sequence):
        return [value if type(value) is int else _visible(value) for value in data]  # numbers by the hundred thousand
    return data
