"""docs/adding-a-stage.md, carried out on a copy of the sources: it works, and takes as few files as it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from whence.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding-a-stage.md").read_text(encoding="utf-8")
SOURCES = ("whence", "pipelines", "components", "configs", "pyproject.toml")
CACHES = shutil.ignore_patterns("__pycache__", "compiled")
# In one process, for what takes the time is the imports.
COMPILE_DOCUMENT_AND_TEST = """
import sys
from pathlib import Path
import pytest
from whence.components import docs
from whence.pipelines.graphs.compile import compile_pipeline
compile_pipeline("configs/demo.yaml", Path("demo.yaml"))
docs.main()
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", sys.argv[1], "-k", "count"]))
"""
Block = tuple[str, str, str]  # path, language, text


def blocks(number: int) -> list[Block]:
    """The blocks of a section, each with the last path that stands on a line of its own before it."""
    section = PAGE.partition(f"\n## {number}. ")[2].partition("\n## ")[0]
    path, found = "", []
    for match in re.finditer(r"^`([\w./]+)`$|^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        if match[1]:
            path = match[1]
        else:
            found.append((path, match[2], match[3]))
    return found


def apply(folder: Path, path: str, language: str, text: str) -> None:
    file = folder / path
    if language != "diff":
        assert not file.exists(), f"{path} is not new"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return
    lines = text.splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
    content = file.read_text(encoding="utf-8")
    assert content.count(before) == 1, f"{path} must contain exactly once:\n{before}"
    file.write_text(content.replace(before, after), encoding="utf-8")


Python = Callable[..., str]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they are when the page has been followed."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():  # whence/pipelines and whence/components link to the folders beside whence
            shutil.copytree(source, folder / name, symlinks=True, ignore=CACHES)
        else:
            shutil.copyfile(source, folder / name)
    for number in (1, 2):
        for block in blocks(number):
            apply(folder, *block)
    return folder


@pytest.fixture(scope="module")
def python(changed: Path) -> Python:
    """Run Python on the changed sources; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(changed), "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}

    def call(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        ended = subprocess.run(command, cwd=changed, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return call


def test_an_input_takes_three_files_and_a_stage_five() -> None:
    stage, report = ({path for path, _, _ in blocks(number)} for number in (1, 2))
    assert stage == {
        "whence/running/artifacts.py",
        "whence/stages/count.py",
        "components/count/component.py",
        "components/count/README.md",
        "pipelines/graphs/explanation.py",
    }
    assert report == {"whence/stages/report.py", "components/report/component.py", "pipelines/graphs/explanation.py"}


@pytest.fixture(scope="module")
def made(changed: Path, python: Python) -> Path:
    """The same when the pipeline is compiled, the tables are written and the components' own tests have passed."""
    python("-c", COMPILE_DOCUMENT_AND_TEST, ROOT / "tests" / "unit" / "test_components_interface.py")
    return changed


def test_the_pipeline_has_the_task_and_the_report_its_input(made: Path) -> None:
    [pipeline, _] = yaml.load_all((made / "demo.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    tasks = pipeline["root"]["dag"]["tasks"]
    assert tasks["count"]["dependentTasks"] == ["generate"]
    words = {"outputArtifactKey": "words", "producerTask": "count"}
    assert tasks["report"]["inputs"]["artifacts"]["words"] == {"taskOutputArtifact": words}
    assert pipeline["components"]["comp-report"]["inputDefinitions"]["artifacts"]["words"]["isOptional"]


def test_the_components_are_as_declared_and_their_readmes_follow(made: Path) -> None:
    counted, report = ((made / "components" / name / "README.md").read_text("utf-8") for name in ("count", "report"))
    assert "| `words` | Metrics | How many words every answer has. |" in counted
    assert "| `words` | Metrics, optional |" in report


def test_the_command_has_its_options_and_does_the_work(python: Python, empty_database: Path, tmp_path: Path) -> None:
    options = re.findall(r"(--[\w-]+)", python("-m", "whence.cli", "count", "--help"))
    assert set(options) == {"--generations", "--words", "--set", "--help"}
    generations, words = tmp_path / "generations", tmp_path / "words"
    (generations / "lineage").mkdir(parents=True)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    config = load_config(ROOT / "configs" / "demo.yaml", {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"})
    (generations / "lineage" / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    answers = pd.DataFrame({"prompt_id": ["a", "b"], "model_id": "base", "answer": ["one", "two  more words"]})
    answers.to_parquet(generations / "generations.parquet")
    printed = python("-m", "whence.cli", "count", "--generations", generations, "--words", words)
    assert "words_per_answer: 2\n" in printed
    assert pd.read_parquet(words / "words.parquet")["words"].tolist() == [1, 3]
