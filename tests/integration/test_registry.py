"""The champion in a real model registry: a sqlite file and a server. Promotions of several processes at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_helpers import one_example
from jobs import Job
from mlflow import MlflowClient

from whence.config import Config
from whence.config_file import pack
from whence.errors import DataError, PromotionError, TrackingError
from whence.running.lineage import TRAINING, hand_on, write_absent
from whence.running.provenance import judged_by, model_digest
from whence.running.runner import run_stage
from whence.stages import gate, prepare, train
from whence.tracking import lock as lock_module
from whence.tracking import stage_run
from whence.tracking.registry import CONTENT_TAG, REFUSED_TAG, Aliases, Registry, Version

MakeConfig = Callable[..., Config]


@pytest.fixture
def config(uri: str, make_config: MakeConfig, request: pytest.FixtureRequest) -> Config:
    name = f"m-{abs(hash(request.node.nodeid))}"
    own = {"tracking.experiment": name, "tracking.registered_model": name}
    return make_config({"tracking.uri": uri, "tracking.retry_seconds": 1, **own})


@pytest.fixture
def client(config: Config) -> MlflowClient:
    return MlflowClient(config.tracking.uri, config.tracking.uri)


def register(config: Config, folder: Path, weights: bytes) -> str | None:
    """A version as the stage ``train`` registers it."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    content = model_digest(folder)
    with stage_run(config, "train") as run:
        name = config.tracking.registered_model
        return run.log_model_version(folder, name, {CONTENT_TAG: content, "whence.data_fingerprint": "d"}, content)


@pytest.fixture
def versions(config: Config, tmp_path: Path) -> list[Version]:
    """Three versions."""
    numbers = [register(config, tmp_path / f"model-{number}", bytes([number])) for number in range(3)]
    return [Registry(config).version(str(number)) for number in numbers]


def test_the_same_model_logged_again_is_the_same_version(config: Config, client: MlflowClient, tmp_path: Path) -> None:
    """What a rerun after a crash does; another model, or other data, is another version."""
    assert [register(config, tmp_path / "a", b"one") for _ in range(3)] == ["1", "1", "1"]
    assert register(config, tmp_path / "a", b"two") == "2"
    found = client.search_model_versions(f"name = '{config.tracking.registered_model}'")
    assert sorted(int(version.version) for version in found) == [1, 2]
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    assert all(run.outputs.model_outputs for run in runs)  # every run shows the model it has registered


def test_a_model_trained_again_bit_for_bit_is_the_same_version(config: Config, tmp_path: Path) -> None:
    """As on a cluster, where a task that was killed after registering has no work folder to find its model in."""
    settings = {
        "general.device": "cpu",
        "general.max_length": 128,
        "dataset.num_samples": 32,
        "dataset.num_eval_samples": 4,
        "dataset.input_column": "input",
        "dataset.output_column": "output",
        "training.dataloader_num_workers": 0,
        "inspection.layer": 0,
        "scores.use_generated": True,
    }
    prepared = {name: tmp_path / name for name in ("base_model", "train_data", "eval_data")}
    run_stage(prepare.STAGE, inputs={}, outputs=prepared, parameters={"settings": pack(config), "overrides": settings})
    for attempt in ("first", "second"):
        outputs = {output.name: tmp_path / attempt / output.name for output in train.STAGE.outputs}
        run_stage(train.STAGE, inputs=prepared, outputs=outputs)
    first, second = (tmp_path / attempt / "model" for attempt in ("first", "second"))
    assert (first / TRAINING).read_text() != (second / TRAINING).read_text()  # seconds and rates
    [version] = Registry(config).versions(CONTENT_TAG, model_digest(second))
    assert version.number == "1"
    with pytest.raises(PromotionError, match="version 2"):
        Registry(config).version("2")


def test_a_version_is_found_by_its_content_and_downloaded_as_it_was(
    config: Config, versions: list[Version], tmp_path: Path
) -> None:
    registry = Registry(config)
    digest = model_digest(tmp_path / "model-1")
    [found] = registry.versions(CONTENT_TAG, digest)
    assert found.number == "2"
    registry.download(found, tmp_path / "back")
    assert model_digest(tmp_path / "back") == digest


def test_without_a_model_there_is_no_champion(config: Config) -> None:
    registry = Registry(config)
    assert registry.champion() is None
    assert registry.aliases() == Aliases(None, None)
    with pytest.raises(PromotionError, match="nothing to roll back to"):
        registry.roll_back()
    with pytest.raises(PromotionError, match=r"version 3 .* there is none"):
        registry.version("3")


def test_a_promotion_moves_the_champion_to_previous_and_may_be_repeated(
    config: Config, versions: list[Version], client: MlflowClient
) -> None:
    registry, (first, second, third) = Registry(config), versions
    assert registry.promote(first, over=None)
    assert registry.aliases() == Aliases("1", None)
    assert registry.promote(second, over="1")
    assert not registry.promote(second, over="1")
    assert registry.aliases() == Aliases("2", "1")
    assert registry.promote(third, over="2")
    assert registry.aliases() == Aliases("3", "2")
    names = {model.name for model in client.search_registered_models()}
    assert f"{registry.name}.promotion" not in names


@pytest.mark.parametrize("over", [None, "1"])
def test_a_comparison_with_one_that_is_the_champion_no_more_promotes_nothing(
    config: Config, versions: list[Version], over: str | None
) -> None:
    registry, (first, second, third) = Registry(config), versions
    registry.promote(first, over=None)
    registry.promote(second, over="1")
    with pytest.raises(PromotionError, match=r"version 3 .* now version 2 is\. The comparison is stale"):
        registry.promote(third, over)
    assert registry.aliases() == Aliases("2", "1")


def test_a_rollback_is_undone_neither_by_a_rerun_nor_by_saying_it_twice(
    config: Config, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, (first, second, _) = Registry(config), versions
    registry.promote(first, over=None)
    monkeypatch.setenv("KFP_RUN_ID", "nightly-7")
    registry.promote(second, over="1")
    assert registry.roll_back() == Aliases("2", "1")
    assert registry.aliases() == Aliases("1", None)
    with pytest.raises(PromotionError, match="nothing to roll back to"):
        registry.roll_back()
    with pytest.raises(PromotionError, match="not promoted again by itself: whence champion set 2"):
        registry.promote(second, over="1")
    registry.set_champion("2")
    assert registry.aliases() == Aliases("2", "1")
    assert not registry.version("2").rolled_back


def test_the_same_run_does_not_promote_again_what_somebody_replaced_in_mlflow_s_own_pages(
    config: Config, versions: list[Version], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, (first, second, _) = Registry(config), versions
    registry.promote(first, over=None)
    monkeypatch.setenv("KFP_RUN_ID", "nightly-7")
    registry.promote(second, over="1")
    client.set_registered_model_alias(registry.name, "champion", "1")
    with pytest.raises(PromotionError, match="not promoted again"):
        registry.promote(second, over="1")
    monkeypatch.setenv("KFP_RUN_ID", "nightly-8")  # new evidence
    assert registry.promote(second, over="1")


def test_a_rollback_that_was_killed_in_the_middle_is_completed(
    config: Config, versions: list[Version], client: MlflowClient
) -> None:
    registry, (first, second, _) = Registry(config), versions
    registry.promote(first, over=None)
    registry.promote(second, over="1")
    client.set_registered_model_alias(registry.name, "champion", "1")  # as far as it got
    registry.roll_back()
    assert registry.aliases() == Aliases("1", None)


def test_a_second_promotion_waits_for_the_first_and_then_sees_that_it_is_stale(
    config: Config, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is held up where it has compared and not yet moved: without a lock both would be promoted."""
    compared, go_on = threading.Event(), threading.Event()
    move = Registry._move

    def slow_move(self: Registry, number: str, *rest: Any) -> None:
        if number == "1":
            compared.set()
            assert go_on.wait(60)
        move(self, number, *rest)

    monkeypatch.setattr(Registry, "_move", slow_move)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(Registry(config).promote, versions[0], None)
        assert compared.wait(60)
        second = threads.submit(Registry(config).promote, versions[1], None)
        assert wait([second], timeout=2).not_done
        go_on.set()
        assert first.result(60)
        with pytest.raises(PromotionError, match="The comparison is stale"):
            second.result(60)
    assert Registry(config).aliases() == Aliases("1", None)


def promote(connection: Connection, config: Config, number: str) -> None:
    """At a word, promote a version on the evidence that there is no champion; sends what came of it."""
    registry = Registry(config)
    candidate = registry.version(number)
    connection.send("ready")
    connection.recv()
    try:
        connection.send("promoted" if registry.promote(candidate, over=None) else "already")
    except PromotionError as error:
        connection.send(f"refused {error}")


def promoted_at_once(config: Config, numbers: Sequence[str]) -> list[str]:
    """What processes say that promote these versions at the same moment."""
    jobs = [Job(promote, config, number) for number in numbers]
    assert [job.receive() for job in jobs] == ["ready"] * len(jobs)
    for job in jobs:
        job.connection.send("go")
    said = [job.receive() for job in jobs]
    assert [job.join() for job in jobs] == [0] * len(jobs)
    return said


def test_of_several_that_promote_at_the_same_moment_on_the_same_evidence_one_does(
    config: Config, versions: list[Version]
) -> None:
    said = promoted_at_once(config, "123")
    assert sorted(words.split()[0] for words in said) == ["promoted", "refused", "refused"]
    winner = next(number for number, words in zip("123", said, strict=True) if words.startswith("promoted"))
    assert Registry(config).aliases() == Aliases(winner, None)
    assert all("The comparison is stale" in words for words in said if words.startswith("refused"))


def hold(connection: Connection, config: Config) -> None:
    """Take the lock and keep it."""
    with Registry(config)._locked():
        connection.send("held")
        connection.recv()


def test_the_lock_of_a_killed_promotion_is_taken_over(
    config: Config, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Job(hold, config)
    assert holder.receive() == "held"
    assert holder.kill()
    monkeypatch.setattr(lock_module, "ABANDONED_SECONDS", 1.0)
    assert Registry(config).promote(versions[0], over=None)
    assert Registry(config).aliases() == Aliases("1", None)


def test_one_that_lost_the_lock_meanwhile_moves_nothing(
    config: Config, versions: list[Version], client: MlflowClient
) -> None:
    registry = Registry(config)
    with registry._locked() as still_held:
        client.delete_registered_model(f"{registry.name}.promotion")
        client.create_registered_model(f"{registry.name}.promotion", tags={"whence.holder": "somebody else"})
        with pytest.raises(PromotionError, match="another promotion took over"):
            registry._move("1", None, still_held)
    assert registry.aliases() == Aliases(None, None)
    assert client.get_registered_model(f"{registry.name}.promotion")  # the other's lock stays


def refused_answers(folder: Path, config: Config, candidate: str) -> dict[str, Path]:
    """The inputs of the stage ``gate`` for two models that answer alike."""
    rows = pd.DataFrame({"example_id": ["e-0", "e-1"], "label": ["A", "B"], "predicted": ["A", "A"], "ranked": True})
    rows["correct"] = rows["exact_match"] = rows["predicted"] == rows["label"]
    rows = rows.assign(reference=rows["label"], answer=rows["predicted"], loss=0.5, tokens=2)
    said = pd.DataFrame([{"prompt_id": "prompt-000", "prompt": "A lens bends light.", "answer": "Yes."}])
    (folder / "generations").mkdir(parents=True)
    for name, frame in (("eval_answers", rows), ("generations", said)):
        both = pd.concat([frame.assign(model_id=model_id) for model_id in ("base", "finetuned")])
        both.to_parquet(folder / "generations" / f"{name}.parquet", index=False)
    digests = {"base": "0" * 64, "finetuned": candidate}
    models = {role: {"id": role, "digest": digest} for role, digest in digests.items()}
    (folder / "generations/models.json").write_text(json.dumps(models))
    hand_on(config, None, folder / "generations")
    return {"generations": folder / "generations", "eval_data": one_example(folder / "eval_data")}


def gate_passes(folder: Path, inputs: dict[str, Path]) -> bool:
    outputs = {output.name: folder / output.name for output in gate.STAGE.outputs}
    result = run_stage(gate.STAGE, inputs=inputs, outputs=outputs, parameters={"champion_version": "1"})
    return bool(result.metrics["passed"])


def test_a_refusal_is_noted_with_the_version_it_is_about(
    config: Config, versions: list[Version], tmp_path: Path
) -> None:
    inputs = refused_answers(tmp_path / "gate", config, model_digest(tmp_path / "model-1"))
    assert not gate_passes(tmp_path, inputs)
    [refused] = Registry(config).versions(REFUSED_TAG, judged_by(config, inputs["eval_data"], "1"))
    assert refused.number == "2"
    assert Registry(config).versions(REFUSED_TAG, judged_by(config, inputs["eval_data"], "3")) == []


def test_a_gate_that_cannot_note_its_refusal_refuses_all_the_same(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)  # the record waits there for the server
    config = make_config({"tracking.uri": "http://127.0.0.1:9", "tracking.retry_seconds": 0})
    assert not gate_passes(tmp_path, refused_answers(tmp_path / "gate", config, "1" * 64))
    assert json.loads((tmp_path / "decision" / "decision.json").read_text())["passed"] is False
    assert "the next scheduled run trains the same again: tracking.uri: no MLflow server answers" in caplog.text


def test_a_server_that_is_away_is_an_error(make_config: MakeConfig) -> None:
    config = make_config({"tracking.uri": "http://127.0.0.1:9", "tracking.retry_seconds": 0})
    with pytest.raises(TrackingError, match=r"no MLflow server answers at http://127\.0\.0\.1:9"):
        Registry(config)


def test_a_gate_whose_guard_could_not_be_measured_does_not_decide(config: Config, tmp_path: Path) -> None:
    inputs = refused_answers(tmp_path / "gate", config, "1" * 64)
    write_absent(tmp_path / "benchmark", "mmlu failed: no questions", failed=True)
    with pytest.raises(DataError, match="nothing can be decided on mmlu, because mmlu failed: no questions"):
        gate_passes(tmp_path, inputs | {"benchmark": tmp_path / "benchmark"})
