"""How one stage is run: what travels with its folders, what is reused, and how an absent input says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from whence.config import Config
from whence.errors import ConfigError, DataError
from whence.running.declaration import TASK, Artifact, Kind, Parameter, Stage, Work
from whence.running.lineage import Absence, absence_of, config_of, hand_on, training_of, write_absent
from whence.running.runner import run_stage

MakeConfig = Callable[..., Config]
SOURCE = Artifact("source", Kind.DATASET, "What it reads.")
EXTRA = Artifact("extra", Kind.DATASET, "More of it.", optional=True)
PARTS = Artifact("parts", Kind.ARTIFACT, "What others made.", optional=True, many=True)
RESULT = Artifact("result", Kind.DATASET, "What it makes.")
PAGE = Artifact("page", Kind.HTML, "What people read.")


def compute(work: Work) -> dict[str, float]:
    work.outputs["result"].mkdir(parents=True)
    seen = {
        "inputs": sorted(work.inputs),
        "parts": len(work.lists["parts"]),
        "absent": {name: absence.why for name, absence in work.absent.items()},
        "top_k": work.config.scores.top_k,
        "task": work.parameters["task"],
    }
    (work.outputs["result"] / "seen.json").write_text(json.dumps(seen))
    work.outputs["page"].write_text("<p>hello</p>")
    work.returns["word"] = "done"
    return {"computed": 1.0}


STAGE = Stage(
    name="example",
    help="Do nothing much.",
    inputs=(SOURCE, EXTRA, PARTS),
    outputs=(RESULT, PAGE),
    settings=("scores",),
    parameters=(TASK,),
    compute=compute,
    record=lambda work: None,
    group="common",
)


@pytest.fixture
def source(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_database, "mlflow.db")
    hand_on(make_config({"general.work_dir": str(tmp_path / "work")}), None, tmp_path / "source")
    (tmp_path / "source" / "lineage" / "training.json").write_text('{"metrics": {"train_loss": 1.0}}')
    return tmp_path / "source"


def outputs(folder: Path) -> dict[str, Path]:
    return {"result": folder / "result", "page": folder / "page"}


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result" / "seen.json").read_text())
    return found


def test_configuration_and_training_history_are_handed_on(source: Path, tmp_path: Path) -> None:
    run_stage(STAGE, inputs={"source": source}, outputs=outputs(tmp_path / "a"))
    result = tmp_path / "a" / "result"
    assert config_of(result) == config_of(source)
    assert training_of(result) == training_of(source)


def test_an_override_wins_and_is_handed_on(source: Path, tmp_path: Path) -> None:
    run_stage(STAGE, inputs={"source": source}, outputs=outputs(tmp_path / "a"), overrides={"scores.top_k": 3})
    assert seen(tmp_path / "a")["top_k"] == 3
    assert config_of(tmp_path / "a" / "result").scores.top_k == 3
    with pytest.raises(ConfigError, match=r"scores\.top_q"):
        run_stage(STAGE, inputs={"source": source}, outputs=outputs(tmp_path / "b"), overrides={"scores.top_q": 3})


def test_finished_work_is_reused_also_after_a_setting_changed_that_the_stage_does_not_read(
    source: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    first = run_stage(STAGE, inputs={"source": source}, outputs=outputs(tmp_path / "a"))
    written = (tmp_path / "a" / "result" / "seen.json").stat().st_ino
    hand_on(make_config({"general.work_dir": str(tmp_path / "work"), "evaluation.confidence": 0.5}), None, source)
    second = run_stage(STAGE, inputs={"source": source}, outputs=outputs(tmp_path / "b"))
    assert second.metrics == first.metrics
    assert second.returns == first.returns == {"word": "done"}
    assert (tmp_path / "b" / "result" / "seen.json").stat().st_ino == written
    assert config_of(tmp_path / "b" / "result").evaluation.confidence == 0.5, "not that of the earlier run"
    assert config_of(tmp_path / "a" / "result").evaluation.confidence != 0.5


def test_inputs_are_read_for_a_key_only_where_work_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("whence.running.workspace.content_digests", lambda path: read.append(path) or {})
    overrides = {"general.work_dir": None}
    run_stage(STAGE, inputs={"source": source}, outputs=outputs(tmp_path / "a"), overrides=overrides)
    assert seen(tmp_path / "a")["inputs"] == ["source"]
    assert read == []
    run_stage(STAGE, inputs={"source": source}, outputs=outputs(tmp_path / "b"))
    assert read == [source]


def test_an_input_that_its_stage_did_not_make_is_absent_with_the_reason(source: Path, tmp_path: Path) -> None:
    write_absent(tmp_path / "extra", "switched off: evaluation.mmlu.enabled is false")
    inputs = {"source": source, "extra": tmp_path / "extra", "parts": [source, source]}
    run_stage(STAGE, inputs=inputs, outputs=outputs(tmp_path / "a"), parameters={"task": 1})
    assert seen(tmp_path / "a") | {"top_k": 0} == {
        "inputs": ["source"],
        "parts": 2,
        "absent": {"extra": "switched off: evaluation.mmlu.enabled is false"},
        "top_k": 0,
        "task": 1,
    }


def test_a_stage_that_cannot_do_without_an_input_says_why_it_is_not_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its input source is not there: .*nowhere; run the stage that makes it"):
        run_stage(STAGE, inputs={"source": tmp_path / "nowhere"}, outputs=outputs(tmp_path / "a"))
    write_absent(tmp_path / "source", "switched off")
    with pytest.raises(DataError, match="cannot do without its input source: switched off"):
        run_stage(STAGE, inputs={"source": tmp_path / "source"}, outputs=outputs(tmp_path / "a"))


def test_a_stage_that_is_switched_off_ends_at_once_and_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHENCE_EVENTS", str(tmp_path / "events"))
    (tmp_path / "mlflow.db").unlink()
    stage = replace(STAGE, switch="evaluation.mmlu.enabled", outputs=(RESULT,))
    overrides = {"evaluation.mmlu.enabled": False}
    inputs = {"source": source}
    result = run_stage(stage, inputs=inputs, outputs={"result": tmp_path / "result"}, overrides=overrides)
    assert result.metrics == {}
    assert absence_of(tmp_path / "result") == Absence("switched off: evaluation.mmlu.enabled is false")
    states = [json.loads(line)["state"] for line in (tmp_path / "events").read_text().splitlines()]
    assert states == ["started", "skipped"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_folder_that_no_stage_has_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no lineage/config\.yaml, so no stage has written it"):
        config_of(tmp_path)


def test_a_parameter_without_a_default_is_an_argument_only_where_it_is_passed(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`whence prepare` passes the settings alone; fields of a form that nobody has filled in must not win over them."""
    monkeypatch.chdir(tmp_path)
    arguments: list[Mapping[str, Any]] = []
    first = replace(
        STAGE,
        inputs=(PARTS,),
        parameters=(Parameter("settings", str, "Text."), Parameter("seed", int, "A field."), TASK),
        resolve=lambda values: arguments.append(values) or make_config(),
    )
    run_stage(first, inputs={}, outputs=outputs(tmp_path / "a"), parameters={"settings": "x"})
    assert arguments == [{"settings": "x", "task": -1}]
