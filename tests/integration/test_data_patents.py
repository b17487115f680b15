"""Real patents become question-answer examples, as the profile for one's own files prepares them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from whence.config import Config
from whence.config_file import load_config
from whence.data.dataset import ExampleSet
from whence.data.preparation import prepare_datasets
from whence.data.prompts import check_prompts, load_prompts
from whence.data.tokenization import IGNORED, TokenizedExamples

PROFILE = Path(__file__).parents[2] / "configs" / "patents-files.yaml"


@pytest.fixture(scope="module")
def config(shared: Path) -> Config:
    files = {
        f"dataset.{split}_files": [str(shared / "data" / "patents" / f"{split}.jsonl")] for split in ("train", "eval")
    }
    return load_config(PROFILE, {**files, "dataset.num_samples": None, "dataset.num_eval_samples": 200})


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared / "models" / "stories260k")


@pytest.fixture(scope="module")
def prepared(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[ExampleSet, ExampleSet]:
    return prepare_datasets(config, lambda texts: tokenizer)


@pytest.fixture(scope="module")
def patents(shared: Path) -> list[dict[str, Any]]:
    lines = (shared / "data" / "patents" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_all_patents_are_there_under_the_titles_of_their_sections(
    config: Config, prepared: tuple[ExampleSet, ExampleSet], patents: list[dict[str, Any]]
) -> None:
    train, _ = prepared
    assert train.info.rows + sum(train.info.dropped.values()) == train.info.rows_read == len(patents)
    titles = config.dataset.label_names or {}
    by_id = {patent["id"]: patent for patent in patents}
    for row in train.frame.itertuples():
        assert row.completion == titles[by_id[row.source_id]["section"]]
    kept = Counter(titles[by_id[source]["section"]] for source in train.frame["source_id"])
    assert train.info.labels == dict(kept)


def test_a_seeded_part_of_the_evaluation_patents_is_held_out(prepared: tuple[ExampleSet, ExampleSet]) -> None:
    train, held_out = prepared
    assert (held_out.info.rows, held_out.info.dropped) == (200, {"not_sampled": 1300})
    assert not set(train.frame["prompt"]) & set(held_out.frame["prompt"])


def test_every_answer_is_whole_and_every_question_survives(
    config: Config, prepared: tuple[ExampleSet, ExampleSet], tokenizer: PreTrainedTokenizerBase
) -> None:
    frame = prepared[1].frame
    examples = TokenizedExamples.from_frame(frame, tokenizer, config)
    assert max(examples.lengths) <= config.general.max_length
    assert 0 < examples.truncated == prepared[1].info.truncated
    for item, completion in zip(examples, frame["completion"], strict=True):
        answer = [token for token in item["labels"] if token != IGNORED]
        assert tokenizer.decode(answer).strip() == f"{completion}</s>"
        prompt = tokenizer.decode(item["input_ids"][: -len(answer)])
        assert prompt.endswith("\n\nQuestion: Which section does this patent belong to?\nAnswer:")


def test_the_prompts_of_the_profile_fit_the_model(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = load_prompts(config)
    check_prompts(prompts, tokenizer, config)
    assert {prompt.reference for prompt in prompts} == set((config.dataset.label_names or {}).values())
