"""Scheduled retraining as a team meets it: data come and go, and a worse model never takes the place of a better one.

One story in one folder, told in order: each test begins with the registry as the one before has left it.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from conftest import Folder
from mlflow import MlflowClient

SETTINGS = """
profile: story
general: {max_length: 48, work_dir: .whence/work, device: cpu}
models: {base: {name: "builtin:tiny-llama"}}
dataset: {train_files: [train.csv], eval_files: [eval.csv], template: "{input} Class:"}
prompts: {items: [{prompt: "A device with a lens. Class:", reference: Optics}]}
training: {num_train_epochs: 4, per_device_train_batch_size: 16, learning_rate: 2e-3, save_steps: 10,
           dataloader_num_workers: 0}
factors: {modules: [down_proj], layers: [0], batch_size: 32}
scores: {top_k: 5, self_influence: false}
generation: {max_new_tokens: 4}
evaluation:
  batch_size: 32
  mmlu: {source: "builtin:demo", tasks: [patent_sections], max_questions: 4}
retraining: {max_loss: {accuracy: 0.02, mmlu: 1.0}}
tracking: {registered_model: story}
"""
WORDS = {
    "Optics": ["lens", "mirror", "prism", "laser"],
    "Textiles": ["loom", "yarn", "fabric", "thread"],
    "Engines": ["piston", "valve", "boiler", "crankshaft"],
}
RUN = ("run", "--config", "settings.yaml", "--pipeline", "retraining")
BEFORE_GATE = {"prepare", "find_champion", "train", "generate", "mmlu", "gate"}
EXPLAINING = {"fit_factors", "inspect", "score", "index", "validate", "compare", "report"}


class Story(Folder):
    """The folder, with its data and its registry."""

    def give(self, file: str, count: int, seed: int, labels: list[str], wrong: bool = False) -> None:
        """Write ``count`` rows of ``labels``, each under another label where they are to be ``wrong``."""
        choose = random.Random(seed)
        with open(self.path / file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            for _ in range(count):
                label = choose.choice(labels)
                text = f"A device number {choose.randrange(10_000)} with a {choose.choice(WORDS[label])}."
                others = [other for other in WORDS if other != label]
                writer.writerow([text, others[0] if wrong else label])

    def what_is_next(self, folder: Path) -> str:
        """What the stages before training say in ``folder``: the pipeline ends there where nothing is to be trained."""
        names = ("base-model", "train-data", "eval-data")
        data = [part for name in names for part in (f"--{name}", folder / name)]
        assert self.whence_here("prepare", "--config", "settings.yaml", *data) == 0
        outputs = ("--champion", folder / "champion", "--changes", folder / "changes")
        assert self.whence_here("find-champion", *data, *outputs) == 0
        return (folder / "changes").read_text(encoding="utf-8")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.path}/mlflow.db", f"sqlite:///{self.path}/mlflow.db")

    def aliases(self) -> dict[str, int]:
        found = self.client.get_registered_model("story").aliases
        return {name: int(version) for name, version in found.items()}

    def versions(self) -> list[int]:
        return sorted(int(version.version) for version in self.client.search_model_versions("name='story'"))

    @property
    def verdict(self) -> str:
        return self.artifact("gate", "verdict").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = Story(tmp_path_factory.mktemp("story"))
    (story.path / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
    story.give("eval.csv", 90, 1, list(WORDS))
    story.give("train.csv", 200, 2, ["Optics", "Textiles"])  # nothing of engines: there is something left to learn
    return story


def finished(story: Story) -> str:
    """Run the pipeline to its end; what it printed, without its line breaks."""
    ended = story.whence(*RUN)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return " ".join(ended.stdout.split())


def test_a_run_that_is_killed_while_training_goes_on_from_the_last_checkpoint(story: Story) -> None:
    work = story.path / ".whence" / "work"
    story.kill_once(lambda: list(work.glob("train-*/scratch/checkpoint-*/complete")), *RUN)
    assert story.states() == {"prepare": "finished", "find_champion": "finished", "train": "started"}
    (story.path / "printed.txt").write_text(finished(story), encoding="utf-8")
    training = json.loads((story.artifact("train", "model") / "lineage" / "training.json").read_text())
    assert training["resumed_from"] >= 10


def test_the_first_model_is_promoted_over_the_base_model(story: Story) -> None:
    printed = (story.path / "printed.txt").read_text(encoding="utf-8")  # by the run that was resumed
    assert story.states() == dict.fromkeys({*BEFORE_GATE, *EXPLAINING, "promote"}, "finished")
    assert story.aliases() == {"champion": 1}
    assert story.versions() == [1]
    assert "story has no champion yet" in printed
    assert "Version 1 of story is the champion now" in printed
    assert [model.name for model in story.client.search_registered_models()] == ["story"]


def test_unchanged_data_train_nothing_and_the_run_says_so(story: Story) -> None:
    printed = finished(story)
    assert story.states() == {"prepare": "finished", "find_champion": "finished"}
    assert "No training. Data, base model and settings are those of the champion, version 1" in printed
    assert story.versions() == [1]


def test_poisoned_data_are_refused_and_the_champion_stays(story: Story) -> None:
    story.give("train.csv", 200, 3, list(WORDS), wrong=True)
    printed = finished(story)
    assert story.states() == dict.fromkeys(BEFORE_GATE, "finished")
    assert "Refused against the champion, version 1: accuracy: more than +0.0000 is asked for" in printed
    assert story.aliases() == {"champion": 1}
    assert story.versions() == [1, 2]
    [table] = [run for run in runs_of(story, "gate") if "Refused" in text_of(story, run, "gate/verdict.md")]
    assert "gate.json" in {item.path for item in story.client.list_artifacts(table)}


def test_what_was_refused_is_not_trained_again(story: Story, tmp_path: Path) -> None:
    refused = "gave version 2 of `story`, which the gate refused against the champion, version 1"
    assert refused in story.what_is_next(tmp_path)


def test_better_data_promote_also_after_a_kill_between_registering_and_promoting(story: Story) -> None:
    story.give("train.csv", 200, 4, list(WORDS))
    story.kill_once(lambda: story.versions() == [1, 2, 3], *RUN)
    assert story.aliases() == {"champion": 1}

    finished(story)
    assert story.states()["train"] == "reused"
    assert story.states()["promote"] == "finished"
    assert story.versions() == [1, 2, 3]  # the same model is not registered again
    assert story.aliases() == {"champion": 3, "previous": 1}
    assert "Passed" in story.verdict


def test_a_second_run_does_not_promote_again(story: Story, tmp_path: Path) -> None:
    assert "are those of the champion, version 3" in story.what_is_next(tmp_path)
    assert story.aliases() == {"champion": 3, "previous": 1}


def test_rolling_back_is_one_command_and_no_schedule_undoes_it(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollback = ("champion", "rollback", "--config", "settings.yaml")
    assert story.whence_here(*rollback) == 0
    assert capsys.readouterr().out.strip() == "champion: version 1 of story, in place of version 3"
    assert story.aliases() == {"champion": 1}
    assert story.whence_here(*rollback) == 1
    assert "nothing to roll back to" in capsys.readouterr().err

    assert "gave version 3 of `story`, which was rolled back" in story.what_is_next(tmp_path)
    assert story.whence_here("champion", "show", "--config", "settings.yaml") == 0
    assert "champion: version 1 of story" in capsys.readouterr().out


def test_mlflow_says_how_each_run_ended(story: Story) -> None:
    parents = [story.client.get_run(run_id) for run_id in runs_of(story, "pipeline")]
    ends = {(run.data.tags.get("whence.champion"), run.info.status) for run in parents}
    assert ends >= {("promoted", "FINISHED"), ("refused", "FINISHED"), (None, "FINISHED")}
    [refused] = [run for run in parents if run.data.tags.get("whence.champion") == "refused"]
    assert refused.data.tags["mlflow.note.content"].startswith("<!-- gate -->\n**Refused** against the champion")


def runs_of(story: Story, stage: str) -> list[str]:
    experiment = story.client.get_experiment_by_name("whence")
    runs = story.client.search_runs([experiment.experiment_id], f"tags.`whence.stage` = '{stage}'")
    return [run.info.run_id for run in runs]


def text_of(story: Story, run_id: str, artifact: str) -> str:
    return Path(story.client.download_artifacts(run_id, artifact)).read_text(encoding="utf-8")
