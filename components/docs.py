"""Write the input/output tables of the components' READMEs: ``python -m whence.components.docs``."""

from __future__ import annotations

from pathlib import Path

from whence.components.images import image
from whence.running.declaration import Artifact, Parameter, Stage
from whence.stages import stages

BEGIN, END = "<!-- interface: written by `make component-docs` -->", "<!-- end of interface -->"


def interface_table(stage: Stage) -> str:
    """Inputs and outputs of a stage as Markdown tables."""
    sides: dict[str, list[Artifact | Parameter]] = {
        "Inputs": [*stage.parameters, *stage.inputs],
        "Outputs": [*stage.outputs, *stage.returns],
    }
    sections = []
    for title, values in sides.items():
        rows = [f"| `{value.name}` | {_type(value)} | {value.help} |" for value in values]
        sections.append("\n".join([f"### {title}", "", "| name | type | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join([stage.help, f"Image: `{image(stage.name)}`", *sections])


def with_table(readme: str, stage: Stage) -> str:
    """``readme`` with the text between the markers replaced by the current tables."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{interface_table(stage)}\n\n{END}{after}"


def readme_of(stage: Stage) -> Path:
    """The README beside the component."""
    return Path(__file__).parent / stage.name / "README.md"


def main() -> None:
    """Bring every README up to date."""
    for stage in stages().values():
        readme = readme_of(stage)
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), stage), encoding="utf-8")


def _type(value: Artifact | Parameter) -> str:
    if isinstance(value, Parameter):
        return getattr(value.type, "__name__", str(value.type))
    words = [value.kind.value]
    if value.many:
        words.insert(0, "list of")
    return " ".join(words) + (", optional" if value.optional else "")


if __name__ == "__main__":
    main()
