"""The model card: read back by the hub's own library, escaped, and complete where people have said nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard as HubCard

from whence.config import Config
from whence.data.dataset import ExampleSet
from whence.models import CARD_FILES
from whence.report.card import NO_PROOF, UNKNOWN, ModelCard, model_card
from whence.running.lineage import content_digests
from whence.running.provenance import model_digest
from whence.validation.evidence import Grade

RECORD = {
    "metrics": {"steps": 30.0, "train_loss": 0.5, "final_eval_loss": 0.25, "train_seconds": 3.0},
    "began": "2026-01-02T03:04:05+00:00",
    "finished": "2026-01-02T03:05:05+00:00",
}
INTERVALS = {"value": 0.9, "low": 0.8, "high": 0.95}
METRICS = {
    "accuracy": {"over": "evaluation rows", "base": {"value": 0.2, "low": 0.1, "high": 0.3}, "finetuned": INTERVALS},
    "perplexity": {"over": "evaluation rows", "finetuned": {"value": 12.345, "low": 11.0, "high": 13.0}},
    "prompt_exact_match": {"over": "prompts", "finetuned": INTERVALS},
}
HUB = {
    "models.base.name": "org/base-1b", "models.base.revision": "abc", "dataset.name": "org/patents",
    "tracking.registered_model": "patents", "card.license": "apache-2.0", "card.provider": "We & Co",
    "card.data.languages": ["en", "de"], "card.data.personal": "Names of inventors.",
}  # fmt: skip


@pytest.fixture
def make(tmp_path: Path, make_config: Callable[..., Config]) -> Callable[..., ModelCard]:
    def make(settings: dict[str, object], source: str = "org/patents") -> ModelCard:
        frame = pd.DataFrame({"prompt": ["a", "b", "c"], "completion": "x", "source": ["web", "web", "book|s"]})
        facts = {"source": source, "rows_read": 5, "dropped": {"empty_text": 2}, "tokens": {"mean": 7.0}}
        data = {"train_data": tmp_path / "train", "eval_data": tmp_path / "eval"}
        for folder in data.values():
            ExampleSet.of(frame, **facts).write(folder)
        return model_card(make_config(settings), tmp_path, parameters=1000, digest="d" * 64, record=RECORD, data=data)

    return make


def test_the_hub_s_library_reads_the_metadata_back(make: Callable[..., ModelCard], make_config) -> None:
    grade = Grade(word="strong", sentence="It holds.", criteria=[])
    card = make(HUB).judged(make_config(HUB), {"models": {"base": "champion"}, "metrics": METRICS}, grade)
    read = HubCard(card.markdown())
    assert read.data.base_model == "org/base-1b"
    assert read.data.license == "apache-2.0"
    assert read.data.datasets == ["org/patents"]
    assert read.data.language == ["en", "de"]
    assert (read.data.library_name, read.data.pipeline_tag) == ("transformers", "text-generation")
    results = [(one.metric_type, one.metric_value, one.dataset_type) for one in read.data.eval_results or []]
    assert results == [("accuracy", 0.9, "org/patents"), ("perplexity", 12.345, "org/patents")]
    assert "| measure | over | champion | this model |" in read.text
    assert "| Accuracy | evaluation rows | 20.0 % (10.0 to 30.0) | 90.0 % (80.0 to 95.0) |" in read.text
    assert "| Perplexity | evaluation rows |  | 12.3 (11 to 13) |" in read.text
    assert "**Evidence: strong.** It holds." in read.text
    assert NO_PROOF in read.text


def test_what_was_not_measured_or_stated_is_said_to_be_missing(make: Callable[..., ModelCard]) -> None:
    card = make({})
    text = card.markdown()
    assert "Loss on 3 held-out examples: 0.25. Nothing else was measured" in text
    assert "was not measured when this card was written" in text
    eu, california = card.disclosures.values()
    assert eu["Provider"] == california["(7) Personal information"] == UNKNOWN
    assert "license" not in card.metadata
    assert "base_model" not in card.metadata, "a name that the hub does not have"


def test_the_facts_that_the_two_rules_ask_for(make: Callable[..., ModelCard]) -> None:
    eu, california = make(HUB).disclosures.values()
    assert eu["Provider"] == "We & Co"
    assert eu["Model, and the model it modifies"] == "patents, from org/base-1b @ abc"
    assert (
        eu["Modality and size of the training data"] == "text, less than 1 billion tokens: 3 examples, about 21 tokens"
    )
    assert len(california) == 12
    assert california["(4) Types of data points"] == "prompts with answers, as text; origins: 2 web, 1 book|s"
    assert california["(7) Personal information"] == "Names of inventors."
    assert california["(9) Cleaning, processing, changes"] == "5 rows read; 2 empty text"
    assert california["(11) First used"] == "2026-01-02"


def test_text_of_the_data_is_text_and_not_markup(make: Callable[..., ModelCard]) -> None:
    text = make({"card.purpose": "line\n\n# heading <script>"}, source="a|b\n# <script>*x*").markdown()
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "| source | a\\|b \\# \\<script\\>\\*x\\* | a\\|b" in text
    assert "\nline \\# heading" in text
    assert "2 web, 1 book\\|s" in text


def test_both_files_are_written_and_the_facts_read_back(make: Callable[..., ModelCard], tmp_path: Path) -> None:
    card = make(HUB)
    card.write(tmp_path / "card")
    assert {file.name for file in (tmp_path / "card").iterdir()} == set(CARD_FILES)
    written = json.loads((tmp_path / "card" / "model_card.json").read_text())
    assert written.pop("disclosures") == card.disclosures
    assert ModelCard.model_validate(written) == card
    settings = (tmp_path / "card" / "README.md").read_text().partition("## Settings")[2].partition("sha256")[0]
    block = "\n".join(line[4:] for line in settings.splitlines() if line.startswith("    "))
    assert yaml.safe_load(block)["dataset"]["name"] == "org/patents"


def test_a_card_changes_neither_the_model_nor_what_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = model_digest(tmp_path), content_digests(tmp_path)
    for name in CARD_FILES:
        (tmp_path / name).write_text("card")
    assert (model_digest(tmp_path), content_digests(tmp_path)) == before
