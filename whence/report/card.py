"""The model card: what a model is made of, how good it is, how far its influences can be trusted.

As ``README.md`` with Hugging Face's metadata (Mitchell et al. 2019, arXiv:1810.03993, for the idea) and as JSON. It has
the facts that two rules ask for: the public summary of training content by the EU's AI Act (Regulation (EU) 2024/1689,
article 53(1)(d), after the Commission's template of July 2025), and California's AB 2013 (Civil Code, section 3111).
What only people know comes from the settings' section ``card``; what they have not said is said to be missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field

from whence.config import Config, Dataset
from whence.config.card import Card
from whence.data.dataset import DataFacts, ExampleSet
from whence.evaluation.metrics import LESS_IS_BETTER, PROMPT
from whence.files import write_atomically, write_json
from whence.models import CARD_FILES
from whence.report.base import environment
from whence.report.overview import NAMES
from whence.report.words import at_revision, counted, estimated, number
from whence.validation.evidence import Grade

README, JSON = CARD_FILES
UNKNOWN = "Not stated."
# Those that decide what a model is; not where files were.
SETTINGS: Any = {
    "general": {"seed", "max_length", "dtype", "processes"},
    "dataset": set(Dataset.model_fields) - {"train_files", "eval_files"},
    "training": True,
}
SOURCES = 20  # of the data, the largest first
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
NO_PROOF = (
    "Influence says which training examples moved this model's answers, by a measured approximation. It is no proof of "
    "where an answer comes from, of who owns it, or of any licence, and a small influence is no proof that an example "
    "was not used."
)


class SourcedFacts(DataFacts):
    """A set of examples, and ``sources``, its rows by origin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: dict[str, int]

    @classmethod
    def of(cls, folder: Path) -> SourcedFacts:
        """Of a data artifact."""
        examples = ExampleSet.read(folder)
        shared = examples.info.model_dump(include=set(DataFacts.model_fields))
        sources = examples.frame["source"].dropna().value_counts().head(SOURCES)
        return cls(**shared, sources={str(name): int(count) for name, count in sources.items()})

    def told(self) -> dict[str, str]:
        """The facts as the card's table has them, by name."""
        return {
            "source": self.source,
            "examples": number(self.rows),
            "rows read": number(self.rows_read),
            "left out": counted(self.dropped) or "none",
            "changed": counted(self.changed) or "none",
            "shortened to fit": number(self.truncated),
            "fingerprint": self.fingerprint,
        }


class ModelCard(BaseModel):
    """The facts of the card.

    Attributes:
        began, finished: of the training, UTC.
        digest: sha256 over the model's files.
        settings: that differ from their defaults.
        training: what training measured: ``steps``, ``train_loss``, ``final_eval_loss``.
        evaluation: the measures as ``comparison.json`` has them; None before they are taken.
        beside: the id of the model that was measured beside: the base model, or the champion.
        evidence: how far influences can be trusted; None before it is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str = Field(description="Of Whence.")
    base_model: str
    base_revision: str | None
    adapter: bool
    parameters: int = Field(description="Trained and stored.")
    digest: str
    began: str
    finished: str
    train_data: SourcedFacts
    held_out_data: SourcedFacts
    settings: dict[str, Any]
    training: dict[str, float]
    stated: Card
    evaluation: dict[str, Any] | None = None
    beside: str = "base"
    evidence: dict[str, str] | None = None

    def judged(self, config: Config, comparison: Mapping[str, Any], grade: Grade | None) -> ModelCard:
        """The card once the model is measured (``comparison.json``), with what people state by now."""
        evidence = None if grade is None else {"grade": grade.word, "sentence": grade.sentence}
        beside = comparison["models"].get("base", self.beside)
        found = {"evaluation": comparison["metrics"], "beside": beside, "evidence": evidence, "stated": config.card}
        return self.model_copy(update=found)

    def write(self, folder: Path) -> None:
        """Write both files."""
        write_atomically(folder / README, self.markdown())
        write_json(folder / JSON, self.model_dump(mode="json") | {"disclosures": self.disclosures})

    def markdown(self) -> str:
        """The page, its metadata first."""
        metadata = yaml.safe_dump(self.metadata, sort_keys=False, allow_unicode=True)
        settings = Markup(indent(yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True), "    "))
        page = (
            environment(markdown=True)
            .get_template("card.md")
            .render(
                card=self,
                measures=self._measures(),
                data=self._data(),
                origins=counted(self.train_data.sources),
                settings=settings,
                no_proof=NO_PROOF,
            )
        )
        return f"---\n{metadata}---\n\n{page}"

    @property
    def metadata(self) -> dict[str, Any]:
        """As the hub reads it: https://huggingface.co/docs/hub/model-cards."""
        data = self.settings.get("dataset", {}).get("name")
        task = "text-generation"
        metrics = [
            {"type": name, "value": measure["finetuned"]["value"], "name": _title(name)}
            for name, measure in (self.evaluation or {}).items()
            if not name.startswith(PROMPT) and "finetuned" in measure
        ]
        held_out = {"type": data or "custom", "name": self.held_out_data.source}
        results = [{"task": {"type": task}, "dataset": held_out, "metrics": metrics}]
        found = {
            "library_name": "peft" if self.adapter else "transformers",
            "pipeline_tag": task,
            "tags": ["whence", "training-data-attribution"],
            "license": self.stated.license,
            "language": self.stated.data.languages,
            "base_model": self.base_model if _HUB_NAME.fullmatch(self.base_model) else None,
            "datasets": [data] if data and _HUB_NAME.fullmatch(data) else None,
            "model-index": [{"name": self.name, "results": results}] if metrics else None,
        }
        return {name: value for name, value in found.items() if value}

    @property
    def disclosures(self) -> dict[str, dict[str, str]]:
        """By rule the facts that it asks for, each under what it is called there."""
        data, stated = self.train_data, self.stated
        told, first = stated.data, self.began[:10]
        tokens = data.rows * data.tokens.get("mean", 0.0)
        size = f"{number(data.rows)} examples, about {number(float(f'{tokens:.2g}'))} tokens"
        scale = "less than 1 billion" if tokens < 1e9 else "1 billion to 10 trillion"
        left_out = counted({**data.dropped, **data.changed})
        processing = f"{number(data.rows_read)} rows read; {left_out or 'none left out or changed'}"
        return {
            "EU AI Act, article 53(1)(d)": {
                "Provider": stated.provider or UNKNOWN,
                "Model, and the model it modifies": f"{self.name}, from {self._base}",
                "Modality and size of the training data": f"text, {scale} tokens: {size}",
                "Languages": ", ".join(told.languages) or UNKNOWN,
                "Time of collection": told.period or UNKNOWN,
                "Sources of data": f"{data.source} ({told.acquired or 'how it was got is not stated'})",
                "Synthetic data": told.synthetic or UNKNOWN,
                "Rights reserved against text and data mining": told.reserved_rights or UNKNOWN,
                "Removal of illegal content": told.illegal or UNKNOWN,
                "Data of the base model": f"As the provider of {self._base} says.",
            },
            "California AB 2013": {
                "(1) Sources or owners": f"{data.source}; {told.owner or 'the owner is not stated'}",
                "(2) How the data serves the purpose": stated.purpose or UNKNOWN,
                "(3) Number of data points": size,
                "(4) Types of data points": f"prompts with answers, as text; origins: {counted(data.sources)}",
                "(5) Protected by copyright, trade mark or patent, or in the public domain": told.copyright or UNKNOWN,
                "(6) Bought or licensed": "; ".join(filter(None, (told.acquired, told.license))) or UNKNOWN,
                "(7) Personal information": told.personal or UNKNOWN,
                "(8) Aggregate consumer information": told.consumers or UNKNOWN,
                "(9) Cleaning, processing, changes": processing,
                "(10) Time of collection": told.period or UNKNOWN,
                "(11) First used": first,
                "(12) Synthetic data": told.synthetic or UNKNOWN,
            },
        }

    @property
    def _base(self) -> str:
        return at_revision(self.base_model, self.base_revision)

    def _data(self) -> list[tuple[str, str, str]]:
        """Rows of the table: what, of the training examples, of those held out."""
        training, held_out = self.train_data.told(), self.held_out_data.told()
        return [(name, text, held_out[name]) for name, text in training.items()]

    def _measures(self) -> list[tuple[str, str, str, str]]:
        """Rows of the table: measure, over what, base, fine-tuned; values with their intervals."""

        def shown(name: str, found: Mapping[str, float] | None) -> str:
            if found is None:
                return ""
            is_share = name.removeprefix(PROMPT) not in LESS_IS_BETTER
            return estimated(found["value"], found["low"], found["high"], is_share)

        return [
            (_title(name), measure["over"], *(shown(name, measure.get(role)) for role in ("base", "finetuned")))
            for name, measure in (self.evaluation or {}).items()
        ]


def model_card(
    config: Config, model: Path, *, parameters: int, digest: str, record: Mapping[str, Any], data: Mapping[str, Path]
) -> ModelCard:
    """The card of a model that was just trained.

    Args:
        model: its folder.
        parameters, digest: of what is stored there.
        record: ``training.json``.
        data: the artifacts ``train_data`` and ``eval_data``.
    """
    import whence
    from whence.models.adapters import is_adapter  # with torch, which completing a card does without

    metrics = record["metrics"]
    return ModelCard(
        name=config.tracking.registered_model,
        version=whence.__version__,
        base_model=config.models.base.name,
        base_revision=config.models.base.revision,
        adapter=is_adapter(model),
        parameters=parameters,
        digest=digest,
        began=record["began"],
        finished=record["finished"],
        train_data=SourcedFacts.of(data["train_data"]),
        held_out_data=SourcedFacts.of(data["eval_data"]),
        settings=config.model_dump(mode="json", exclude_defaults=True, include=SETTINGS),
        training={name: metrics[name] for name in ("steps", "train_loss", "final_eval_loss")},
        stated=config.card,
    )


def _title(name: str) -> str:
    return NAMES.get(name.removeprefix(PROMPT), name)
