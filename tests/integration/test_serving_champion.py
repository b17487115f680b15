"""The service follows the champion of a real registry, and is not left without a model on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking_helpers import make_run

from whence.cli import main
from whence.config import Config
from whence.errors import DataError
from whence.running.provenance import model_digest
from whence.serving.events import Question
from whence.serving.source import RECORDED, Champion, Keeper
from whence.tracking import stage_run
from whence.tracking.registry import CONTENT_TAG, Registry


def record(config: Config, folder: Path, pipeline_run: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run as its stages record it; the version number."""
    monkeypatch.setenv("KFP_RUN_ID", pipeline_run)
    model = folder / "artifacts" / "train" / "model"
    with stage_run(config, "train") as run:
        digest = f"{model_digest(model)} {pipeline_run}"  # both runs have the same weights
        number = run.log_model_version(model, config.tracking.registered_model, {CONTENT_TAG: digest}, digest)
    for (stage, artifact), path in RECORDED.items():
        with stage_run(config, stage) as run:
            run.log_artifacts(folder / "artifacts" / stage.replace("_", "-") / artifact, path)
    assert number
    return number


def test_the_service_follows_the_champion(
    tiny_model: Any,
    tiny_tokenizer: Any,
    make_config: Callable[..., Config],
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config({"tracking.uri": uri, "tracking.experiment": "serve", "tracking.registered_model": "serve"})
    first = make_run(tmp_path / "one", tiny_model, tiny_tokenizer, make_config, **{"general.seed": 1})
    second = make_run(tmp_path / "two", tiny_model, tiny_tokenizer, make_config, **{"general.seed": 2})
    keeper = Keeper(Champion(config, tmp_path / "cache"))
    registry = Registry(config)
    with pytest.raises(DataError, match="no champion"):
        keeper.refresh()
    assert keeper.service is None

    registry.set_champion(record(config, first, "run-1", monkeypatch))
    keeper.refresh()
    one = keeper.service
    assert one is not None
    assert [event.event for event in one.explain(Question(question="The lens is", answer="valve"))][-1] == "rows"

    keeper.refresh()
    assert keeper.service is one, "nothing has changed"
    monkeypatch.setenv("KFP_RUN_ID", "run-2")
    with stage_run(config, "train") as run:  # a version whose run has no index
        model = second / "artifacts" / "train" / "model"
        bare = run.log_model_version(model, "serve", {CONTENT_TAG: "other"}, "other")
    assert bare
    registry.set_champion(bare)
    with pytest.raises(DataError, match=r"no factors of stage fit_factors"):
        keeper.refresh()
    assert keeper.service is one, "the one before stays"
    assert [event.event for event in one.explain(Question(question="The lens is", answer="valve"))][-1] == "rows"

    registry.set_champion(record(config, second, "run-3", monkeypatch))
    keeper.refresh()
    assert keeper.service is not one


def test_a_version_is_asked_without_the_service_and_fetched_once(
    tiny_model: Any,
    tiny_tokenizer: Any,
    make_config: Callable[..., Config],
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config({"tracking.uri": uri, "tracking.experiment": "ask", "tracking.registered_model": "ask"})
    folder = make_run(tmp_path / "run", tiny_model, tiny_tokenizer, make_config)
    number = record(config, folder, "run-1", monkeypatch)
    Registry(config).set_champion(number)
    where = ["--set", f"tracking.uri={uri}", "--set", "tracking.registered_model=ask", "--cache", str(tmp_path)]
    given = ["ask", "The lens is", "--answer", "valve", "--json"]
    found = []
    for chosen in (["--run", str(folder)], ["--champion", *where], ["--version", number, *where]):
        with pytest.raises(SystemExit) as ended:
            main([*given, *chosen])
        assert not ended.value.code
        found.append(json.loads(capsys.readouterr().out))
        monkeypatch.setattr(Registry, "download", lambda *_: pytest.fail("fetched again")) if len(found) == 2 else None
    assert found[0]["helpful"] == found[1]["helpful"] == found[2]["helpful"]
    assert found[1]["evidence"]["grade"] == "weak"
    with pytest.raises(SystemExit):
        main([*given, "--version", "77", *where])
    assert "version 77" in capsys.readouterr().err
