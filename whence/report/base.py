"""What every page shares: one document that needs nothing else, templates that escape everything, packed data.

Kubeflow shows HTML in an iframe with ``sandbox="allow-scripts"``, MLflow likewise: a page's own script runs there
without storage, popups or downloads. A content security policy lets exactly this script and this style through, by
their hashes, and no request.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from whence.report.words import LONGEST_NAME, bounds, measured, number, percent, plain, shortened, signed, visible


@cache
def environment(markdown: bool = False) -> Environment:
    """The templates of this package; text is escaped, for HTML or Markdown, and an unknown name is an error."""
    escaped = plain if markdown else visible  # what HTML escapes besides is seen to by jinja2
    made = Environment(
        loader=PackageLoader("whence.report"),
        autoescape=not markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escaped(value) if type(value) is str else value,
    )
    made.globals |= {"number": number, "percent": percent, "signed": signed, "measured": measured, "bounds": bounds,
                     "name": lambda text: shortened(str(text), LONGEST_NAME)}  # fmt: skip
    return made


def render(template: str, scripts: Sequence[str] = (), **context: Any) -> str:
    """A page from a template that extends ``base.html``.

    Args:
        scripts: names of its scripts among the assets, in order; without one the policy forbids them all.
    """
    style, code = asset("report.css"), "".join(map(asset, scripts))
    hashes = {"style_hash": _hash(style), "script_hash": _hash(code) if code else ""}
    page = environment().get_template(template)
    return page.render(context, style=Markup(style), script=Markup(code), **hashes)


@cache
def asset(name: str) -> str:
    """A style or script of the pages."""
    return files("whence.report").joinpath("assets", name).read_text(encoding="utf-8")


def packed(data: Any) -> str:
    """``data`` as JSON, compressed, in base64: it cannot end the element it stands in, whatever its strings hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii")


def data_address(kind: str, content: bytes) -> str:
    """A file inside the page.

    Args:
        kind: its media type.
    """
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
