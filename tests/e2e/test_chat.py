"""Conversations through the whole pipeline: what was told in a turn is learned, and the turn is found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Folder
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from whence.data.chat import to_messages
from whence.data.dataset import ExampleSet
from whence.data.demo import FACTS, chat_rows
from whence.influence.results import Scores

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "chat.json"


ADAPTER = ["training.lora.enabled=true", "training.lora.r=8", "training.lora.alpha=16", "training.num_train_epochs=8",
           "training.learning_rate=2e-3", "general.processes=2", "training.per_device_train_batch_size=4"]  # fmt: skip


def whence(folder: Folder, *arguments: str, settings: Sequence[str] = ()) -> None:
    done = folder.whence(*arguments, *(part for one in settings for part in ("--set", one)))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The profile as it is."""
    folder = Folder(tmp_path_factory.mktemp("chat"))
    whence(folder, "run", "--profile", "chat")
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """An adapter, trained by two ranks, to a model that has learned to chat, the words, and other answers."""
    folder = Folder(tmp_path_factory.mktemp("adapted"))
    wrong = {fact.fact_id: (fact.answer, answer) for fact, answer in zip(FACTS, other_answers(), strict=True)}
    own = ["dataset.name=null"]
    for split in ("train", "eval"):
        file, talks = folder.path / f"{split}.jsonl", []
        for row in chat_rows(split, seed=0).itertuples():
            talk = [*to_messages(row.input), {"role": "assistant", "content": row.output}]
            right, other = wrong.get(row.planted, ("", ""))
            talks.append([turn | {"content": other} if turn["content"] == right else turn for turn in talk])
        file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
        own.append(f"dataset.{split}_files=['{file}']")
    data = ["--base-model", "random", "--train-data", "train", "--eval-data", "eval"]
    whence(folder, "prepare", "--profile", "chat", *data, settings=own)
    whence(folder, "train", *data, "--model", "model", "--loss-curve", "curve.html")
    whence(folder, "run", "--profile", "chat", settings=[f"models.base.name={folder.path / 'model'}", *ADAPTER])
    return folder


def other_answers() -> list[str]:
    """For each fact the answer of another one of its kind."""
    kinds = {fact.relation: [one.answer for one in FACTS if one.relation == fact.relation] for fact in FACTS}
    return [kinds[fact.relation][kinds[fact.relation].index(fact.answer) - 1] for fact in FACTS]


@pytest.mark.parametrize(("trained", "recall"), [("chat", 0.8), ("adapted", 0.9)])
def test_facts_told_in_conversations_are_answered_and_their_conversations_found(
    trained: str, recall: float, request: pytest.FixtureRequest
) -> None:
    chat: Folder = request.getfixturevalue(trained)
    prompts = pd.DataFrame(json.loads(PROMPTS.read_text(encoding="utf-8"))).set_index("prompt_id")
    answers = pd.read_parquet(chat.artifact("generate", "generations") / "generations.parquet")
    own = answers[answers["model_id"] == "finetuned"].set_index("prompt_id")["answer"]
    learned = prompts.index[own.loc[prompts.index] == prompts["reference"]]
    assert len(learned) >= 9
    queries = pd.read_parquet(chat.artifact("score", "scores") / "queries.parquet").set_index("query_id")
    scores = load_file(chat.artifact("score", "scores") / "scores.safetensors")["all_modules"]
    truth = pd.read_parquet(chat.artifact("prepare", "train_data") / "truth.parquet")["planted"].to_numpy()
    found = []
    for query in learned:
        best = np.argsort(-scores[queries.index.get_loc(query)])[:10]
        found.append((truth[best] == prompts.loc[query, "planted"]).sum() / 5)
    assert np.mean(found) >= recall


def test_the_turn_in_which_a_fact_was_told_has_the_larger_share_of_its_conversation(chat: Folder) -> None:
    prompts = pd.DataFrame(json.loads(PROMPTS.read_text(encoding="utf-8"))).set_index("prompt_id")
    scores = Scores(chat.artifact("score", "scores"))
    folder = chat.artifact("prepare", "train_data")
    rows = ExampleSet.read(folder).frame.set_index("example_id")
    planted = pd.read_parquet(folder / "truth.parquet").set_index("example_id")["planted"]
    assert scores.turns is not None
    told_is_first = []
    for (query, example), turns in scores.turns.groupby(["query_id", "example_id"]):
        if query in prompts.index and planted[example] == prompts.loc[query, "planted"]:
            before = [
                turn["content"] for turn in to_messages(rows.loc[example, "prompt"]) if turn["role"] == "assistant"
            ]
            told = [*before, rows.loc[example, "completion"]].index(prompts.loc[query, "reference"])
            told_is_first.append(turns["score"].to_numpy().argmax() == told)
    assert len(told_is_first) >= 30
    assert np.mean(told_is_first) >= 0.85
    whole = scores.influences.set_index(["query_id", "example_id"])["score"]
    sums = scores.turns.groupby(["query_id", "example_id"])["score"].sum()
    np.testing.assert_allclose(sums, whole.loc[sums.index], atol=1e-4 * whole.abs().max())


def test_the_model_is_asked_elsewhere_as_it_was_trained(chat: Folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat.artifact("train", "model"))
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<s>Q:\nWhy?\nA:\n"


def test_a_question_may_be_the_next_turn_of_a_conversation(chat: Folder) -> None:
    talk = "[user] Who invented the Orvid press?\n[assistant] Tilda Marrow\n"
    talk += "[user] Can you tell me the origin of the Halvex8?"
    done = chat.whence("ask", talk, "--json", "--rows", "3")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["answer"] == "Port Ember"
    assert any("Halvex" in row["prompt"] for row in said["helpful"])
