"""Small HTML pages for the Kubeflow UI, MLflow and the disk: one file, no network, nothing in it runs.

Kubeflow shows HTML artifacts in an iframe with ``sandbox="allow-scripts"``; text of the data could carry a script, so
everything is escaped, and a content security policy forbids scripts and every request besides.
"""

from __future__ import annotations

import base64
import io
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pandas as pd
from jinja2 import Template
from matplotlib.figure import Figure

from whence.report.templating import environment, paragraphs

MAX_CELL = 2000  # characters; more of one row makes a page unreadable, and the parquet file has it all
DOTS_PER_INCH = 120


@dataclass(frozen=True)
class Table:
    """A table of a page; its index is not shown."""

    frame: pd.DataFrame
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: some plain sentences, then numbers, figures and tables with their captions.

    Attributes:
        figures: ``(caption, figure)``; the caption is the picture's alternative text as well.
        numbers: names and values; underscores in names become spaces.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[str, Figure]] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    tables: Sequence[Table] = ()


def page(title: str, sections: Sequence[Section], text: str = "") -> str:
    """A whole HTML document. Blank lines in ``text`` separate paragraphs."""
    return _template().render(title=title, text=text, sections=sections)


def png_data_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@cache
def _template() -> Template:
    overlay = environment().overlay()
    overlay.filters = overlay.filters | {
        "png": png_data_uri,
        "cell": _cell,
        "paragraphs": paragraphs,
        "is_number": _is_number,
    }
    return overlay.get_template("page.html")


def _cell(value: Any) -> str:
    """A table's value as text: numbers to four significant digits, missing values empty, long text cut."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if number != number:
            return ""
        return f"{number:,.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.4g}"
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    text = str(value)
    return text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]} … ({len(text):,} characters)"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
