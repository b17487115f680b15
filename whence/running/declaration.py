"""How a stage is declared: what it takes, what it makes, what decides its result, and the code that does it.

Everything else that knows of a stage is derived from its declaration: the options of its command, the body of its
Kubeflow component, the tables of its README, the resources of its tasks, the image that runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whence.config import Config
    from whence.running.lineage import Absence
    from whence.tracking import StageRun

# Settings that decide how rows become tokens.
TOKENS = tuple(f"dataset.{name}" for name in ("format", "chat_template", "chat_template_kwargs", "loss_on", "template"))


class Kind(StrEnum):
    """What the Kubeflow UI takes an artifact for; the names are those of ``kfp.dsl``."""

    ARTIFACT = "Artifact"
    DATASET = "Dataset"
    MODEL = "Model"
    METRICS = "Metrics"
    """A folder whose stage's metrics appear in the UI's comparison of runs."""
    HTML = "HTML"
    MARKDOWN = "Markdown"


@dataclass(frozen=True)
class Artifact:
    """A file or folder that flows between stages, as an output of one and an input of others.

    Attributes:
        name: its name everywhere: in components, as an option of commands, in MLflow.
        help: what is in it, a sentence.
        optional: as an input, whether the stage does without it.
        many: as an input, whether it is a list of artifacts.
    """

    name: str
    kind: Kind
    help: str
    optional: bool = False
    many: bool = False

    @property
    def is_page(self) -> bool:
        """Whether it is a single file that people read; everything else is a folder."""
        return self.kind in (Kind.HTML, Kind.MARKDOWN)

    def without(self, help_text: str) -> Artifact:
        """The same as an optional input; ``help_text`` says what becomes of the result without it."""
        return replace(self, help=f"{self.help} {help_text}", optional=True)


@dataclass(frozen=True)
class Parameter:
    """A plain value beside the artifacts, as an argument or a result of a stage; without a default where it is None."""

    name: str
    type: type
    help: str
    default: Any = None


TASK = Parameter(
    "task", int, "Number of the task, from 0, of the parallel tasks that share the work; below 0 for all of it.", -1
)


@dataclass
class Work:
    """One run of a stage, as its ``compute`` and ``record`` see it.

    Attributes:
        config: the resolved configuration, which goes on with the outputs as ``compute`` leaves it.
        inputs: the input artifacts by name; optional ones that were not made are left out.
        lists: the inputs that are lists of artifacts, by name; empty where there are none.
        absent: why an optional input was not made, by name, where its stage says so.
        parameters: the arguments by name.
        outputs: where to write each output.
        scratch: a folder for what need not be kept; a stage that is resumed after a crash has it again.
        run: the stage's run in MLflow.
        returns: the results that are plain values, by name; ``compute`` sets them.
        logged_steps: the steps whose metrics ``compute`` has logged while it ran, which ``record`` need not log again.
    """

    config: Config
    inputs: Mapping[str, Path]
    lists: Mapping[str, list[Path]]
    absent: Mapping[str, Absence]
    parameters: Mapping[str, Any]
    outputs: Mapping[str, Path]
    scratch: Path
    run: StageRun
    returns: dict[str, Any] = field(default_factory=dict)
    logged_steps: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Stage:
    """A stage of the pipelines. Its module ``whence/stages/<name>.py`` holds it as ``STAGE``.

    Attributes:
        name: of its module, its component's folder and its image.
        help: what it does, a sentence in the imperative.
        inputs: the first one that is a folder carries the configuration.
        outputs: what it makes.
        settings: dotted keys of the settings (or sections) that decide its result.
        compute: writes the outputs and returns the stage's metrics; not called when the same work is already done.
        record: logs what a reviewer needs for good, from the outputs.
        group: the dependency group of ``pyproject.toml`` that its image holds; docker/build.sh reads it too.
        gpu: whether its tasks ask for an accelerator where the cluster has any.
        divided: whether its work is shared by processes, one for each of ``cluster.accelerator_count`` accelerators;
            tasks of another stage ask for one of them.
        parameters: its arguments that are plain values.
        returns: its results that are plain values.
        resolve: makes the configuration from the arguments, for the stage that begins a pipeline.
        switch: the setting that switches the stage off when false.
        side: whether a run goes on without it: where it fails its outputs say why, and the report comes before that.
        reuse: false for a stage that looks at the outside world and must look every time.
    """

    name: str
    help: str
    inputs: tuple[Artifact, ...]
    outputs: tuple[Artifact, ...]
    settings: tuple[str, ...]
    compute: Callable[[Work], dict[str, float]]
    record: Callable[[Work], None]
    group: str
    gpu: bool = False
    divided: bool = False
    parameters: tuple[Parameter, ...] = ()
    returns: tuple[Parameter, ...] = ()
    resolve: Callable[[Mapping[str, Any]], Config] | None = None
    switch: str | None = None
    side: bool = False
    reuse: bool = True

    @property
    def title(self) -> str:
        """The name as commands, images and Kubeflow's tasks have it: ``fit-factors``."""
        return self.name.replace("_", "-")
