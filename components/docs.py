"""Write the input/output tables of the components' READMEs: ``python -m components.docs`` (tests hold them current)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from whence.components import ALL

BEGIN, END = "<!-- interface: written by `make component-docs` -->", "<!-- end of interface -->"


def component(stage: str) -> Any:
    """The Kubeflow component of a stage (``kfp.dsl.PythonComponent``)."""
    return getattr(importlib.import_module(f"whence.components.{stage}.component"), stage)


def interface_table(stage: str) -> str:
    """Inputs and outputs of the component as Markdown tables."""
    spec = component(stage).component_spec
    sections = []
    for title, ports in (("Inputs", spec.inputs), ("Outputs", spec.outputs)):
        rows = [f"| `{name}` | {_type(port)} | {port.description or ''} |" for name, port in ports.items()]
        sections.append("\n".join([f"### {title}", "", "| name | type | meaning |", "|---|---|---|", *rows]))
    image = spec.implementation.container.image
    return "\n\n".join([f"Image: `{image}`", *sections])


def with_table(readme: str, stage: str) -> str:
    """``readme`` with the text between the markers replaced by the current tables."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{interface_table(stage)}\n\n{END}{after}"


def readme_of(stage: str) -> Path:
    """The README beside the component."""
    return Path(__file__).parent / stage / "README.md"


def main() -> None:
    """Bring every README up to date."""
    for stage in ALL:
        readme = readme_of(stage)
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), stage), encoding="utf-8")


def _type(port: Any) -> str:
    name: str = port.type.removeprefix("system.").partition("@")[0]
    return f"list of {name}" if getattr(port, "is_artifact_list", False) else name


if __name__ == "__main__":
    main()
