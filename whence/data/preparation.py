"""From a source to the two data artifacts: read, clean, hold out, sample, format, and count dropped rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from whence.config import Config, DataFormat, LossOn
from whence.data.chat import ChatError
from whence.data.cleaning import CHANGES, clean_rows, look
from whence.data.dataset import COLUMNS, DatasetInfo, ExampleSet, fingerprint
from whence.data.formatting import to_prompt
from whence.data.sources import RawRows, Split, read_rows
from whence.data.tokenization import Encoded, Encoder
from whence.errors import DataError
from whence.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MOST_LABELS = 1000  # in dataset.json; free answers are as many as rows
TRUTH_COLUMNS = ("planted", "flipped", "true_output")
TokenizerFor = Callable[[list[str]], "PreTrainedTokenizerBase"]


def prepare_datasets(config: Config, tokenizer_for: TokenizerFor) -> tuple[ExampleSet, ExampleSet]:
    """The training and the evaluation examples.

    ``rows_read`` is ``rows`` plus the rows in ``dropped``, by reason: those of :func:`whence.data.cleaning.clean_rows`,
    ``also_in_evaluation``, ``not_sampled``, ``answer_does_not_fit``, and of conversations ``not_text_alone``,
    ``without_answer`` and ``refused_by_the_chat_template``.

    Args:
        tokenizer_for: the tokenizer of the base model, from all training texts (a built-in model's is trained on them).

    Raises:
        DataError: a source cannot be used, or no row is left.
    """
    splits: tuple[Split, ...] = ("train", "eval")
    raw = {split: read_rows(config.dataset, split, config.general.seed) for split in splits}
    if raw["train"].format != raw["eval"].format:
        raise DataError(
            f"dataset.format: training rows are {raw['train'].format}, evaluation rows {raw['eval'].format}",
            hint="give both in one format",
        )
    if config.dataset.format is None and raw["train"].format != "question_answer":
        logger.warning("dataset.format: the columns tell that rows are %s", raw["train"].format)
    loss_on = config.dataset.loss_on
    if loss_on == "answer" and raw["train"].last_alone:
        loss_on = "last"
        logger.warning("dataset.loss_on: the completions are the last answers, which alone count")
    config = with_format(config, raw["train"].format, loss_on)
    cleaned = {split: clean_rows(rows.frame, config.dataset.cleaning) for split, rows in raw.items()}
    rows = {split: frame for split, (frame, _) in cleaned.items()}
    dropped = {split: raw[split].dropped + counter for split, (_, counter) in cleaned.items()}
    if config.dataset.cleaning.drop_duplicates:
        held_out = set(rows["eval"]["input"].map(look))
        leaked = rows["train"]["input"].map(look).isin(held_out)
        dropped["train"]["also_in_evaluation"] += int(leaked.sum())
        rows["train"] = rows["train"][~leaked]
    limits = {"train": config.dataset.num_samples, "eval": config.dataset.num_eval_samples}
    for split in rows:
        if rows[split].empty:
            raise DataError(_nothing_left(split, raw[split], dropped[split]))
        rows[split], left_out = _sample(rows[split], limits[split], config.general.seed)
        dropped[split]["not_sampled"] += left_out
        if len(rows[split]) < (limits[split] or 0):
            logger.warning("%s: %d rows are to be kept, only %d are left", split, limits[split], len(rows[split]))
    texts = {split: _format(frame, config) for split, frame in rows.items()}
    tokenizer = tokenizer_for(
        [f"{p} {c}" for p, c in zip(texts["train"].prompt, texts["train"].completion, strict=True)]
    )
    train, evaluation = (
        _finish(split, raw[split], rows[split], texts[split], dropped[split], tokenizer, config) for split in rows
    )
    return train, evaluation


def with_format(config: Config, format: DataFormat, loss_on: LossOn) -> Config:
    """The settings with the format that rows were found to be of, and with what of them is to be learned."""
    found = {"format": format, "loss_on": loss_on}
    return config.model_copy(update={"dataset": config.dataset.model_copy(update=found)})


def _sample(rows: pd.DataFrame, count: int | None, seed: int) -> tuple[pd.DataFrame, int]:
    """A seeded choice of ``count`` rows in their old order, and how many were left out."""
    if count is None or count >= len(rows):
        return rows, 0
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), size=count, replace=False))
    return rows.iloc[chosen], len(rows) - count


def _format(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    if config.dataset.format == "text":
        prompts = [""] * len(rows)
    elif config.dataset.format != "question_answer":
        prompts = rows["input"].to_list()
    else:
        prompts = [to_prompt(config.dataset.template, text) for text in rows["input"]]
    if "prompt" in rows:  # rows that ask another question than the template's
        prompts = [own or prompt for own, prompt in zip(rows["prompt"], prompts, strict=True)]
    return pd.DataFrame({"prompt": prompts, "completion": rows["output"]}, index=rows.index)


def _finish(
    split: str,
    raw: RawRows,
    rows: pd.DataFrame,
    texts: pd.DataFrame,
    dropped: Counter[str],
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
) -> ExampleSet:
    pairs = zip(texts["prompt"], texts["completion"], strict=True)
    shown = progress(pairs, desc=f"tokenize {split}", unit="row", total=len(texts))
    encoder = Encoder(tokenizer, config)
    encoded = [_encode(encoder, prompt, answer) for prompt, answer in shown]
    fits = np.array([isinstance(item, Encoded) for item in encoded], dtype=bool)
    refused = [item for item in encoded if isinstance(item, ChatError)]
    if refused:
        logger.warning("%s: %d rows are left out, the first because %s", split, len(refused), refused[0])
    dropped.update(
        {"refused_by_the_chat_template": len(refused), "answer_does_not_fit": int((~fits).sum()) - len(refused)}
    )
    kept, texts = rows[fits], texts[fits]
    if kept.empty:
        raise DataError(_nothing_left(split, raw, dropped))
    frame = pd.DataFrame(
        {
            "example_id": [f"{split}-{number:06d}" for number in range(len(kept))],
            "prompt": texts["prompt"].to_list(),
            "completion": texts["completion"].to_list(),
            "label": kept["output"].to_list(),
            "source_id": kept["source_id"].to_list(),
            "source": kept["source"].to_list(),
        },
        columns=list(COLUMNS),
    )
    _warn_of_lookalikes(frame["label"].unique())
    lengths = np.array([len(item.input_ids) for item in encoded if isinstance(item, Encoded)])
    info = DatasetInfo(
        split=split,
        source=raw.source,
        rows=len(frame),
        rows_read=raw.rows_read,
        format=raw.format,
        loss_on=config.dataset.loss_on,
        dropped=_nonzero(dropped),
        changed=Counter(change for changes in kept[CHANGES] for change in changes),
        truncated=sum(item.truncated > 0 for item in encoded if isinstance(item, Encoded)),
        labels={str(label): int(count) for label, count in frame["label"].value_counts().head(MOST_LABELS).items()},
        template=config.dataset.template,
        max_length=config.general.max_length,
        tokens={"mean": float(lengths.mean()), "p95": float(np.percentile(lengths, 95)), "max": float(lengths.max())},
        fingerprint=fingerprint(frame),
    )
    return ExampleSet(frame, info, _truth(kept, frame))


def _encode(encoder: Encoder, prompt: str, completion: str) -> Encoded | DataError:
    """The row as tokens, or why it cannot be."""
    try:
        return encoder.example(prompt, completion)
    except DataError as error:
        return error


def _warn_of_lookalikes(labels: Iterable[str]) -> None:
    """Two labels that look the same are two classes to the model and its measures."""
    by_look: dict[str, list[str]] = {}
    for label in labels:
        by_look.setdefault(look(label), []).append(label)
    for alike in by_look.values():
        if len(alike) > 1:
            logger.warning("answers that look the same but are not: %s", ", ".join(map(repr, alike[:5])))


def _truth(rows: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame | None:
    if not set(TRUTH_COLUMNS) <= set(rows.columns):
        return None
    truth = rows[list(TRUTH_COLUMNS)].rename(columns={"true_output": "true_completion"}).reset_index(drop=True)
    truth.insert(0, "example_id", frame["example_id"])
    return truth


def _nothing_left(split: str, raw: RawRows, dropped: Counter[str]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in _nonzero(dropped).items())
    return (
        f"no {split} row is left of the {raw.rows_read} from {raw.source} ({reasons}); look at dataset.input_column, "
        "dataset.output_column and dataset.cleaning, and at general.max_length if answers do not fit"
    )


def _nonzero(counter: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in counter.items() if count}
