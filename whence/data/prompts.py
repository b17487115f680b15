"""The prompts people ask about: ``prompts.json`` or ``prompts.items``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whence.config import Config, Dataset
from whence.data.chat import ASSISTANT, parse_messages, to_text
from whence.data.cleaning import clean_text, look
from whence.data.files import open_text
from whence.data.formatting import EXACT_IDS, GENERATED_SUFFIX, UNLIMITED, tail_of, to_prompt
from whence.errors import DataError
from whence.files import unique_keys

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

ASKED = ("prompt", "input", "messages")
QUERY_COLUMNS = ("query_id", "prompt", "completion", "source")
NonEmpty = Annotated[str, Field(min_length=1)]


class Prompt(BaseModel):
    """A prompt, the answer it should have (if known), and the planted fact it asks for (demo corpus only)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_id: NonEmpty
    prompt: NonEmpty
    reference: NonEmpty | None = None
    planted: str | None = None


def load_prompts(config: Config) -> list[Prompt]:
    """Read and check the prompts of the configuration.

    Items are strings, or objects with ``prompt`` (used as it is), ``input`` (cleaned and put into ``dataset.template``
    like a row of the data) or ``messages`` (a conversation; its last answer, or that of its ``turn``, counted from 1,
    is the reference), and optionally ``prompt_id``, ``reference`` and ``planted``.

    Raises:
        DataError: the file cannot be read, is no JSON list, an item has unknown or missing keys, an id is used twice.
    """
    prompts = [prompt for prompt, _ in _parsed(config)]
    (name, count), *_ = Counter(prompt.prompt_id for prompt in prompts).most_common(1)
    if count > 1:
        raise DataError(f"{_items(config)[0]}: prompt_id {name!r} is used more than once", hint="ids must differ")
    return prompts


def prompt_changes(config: Config) -> dict[str, int]:
    """How many prompts have seen each kind of change of their text or reference, as rows do by ``dataset.cleaning``."""
    return Counter(change for _, changes in _parsed(config) for change in changes)


def _parsed(config: Config) -> list[tuple[Prompt, set[str]]]:
    origin, items = _items(config)
    if not isinstance(items, list) or not items:
        raise DataError(f"{origin}: expected a JSON list with at least one prompt, found {_kind(items)}")
    return [
        parse_prompt(item, f"{origin}, prompt {number}", number, config.dataset) for number, item in enumerate(items, 1)
    ]


def query_frame(config: Config, generations: pd.DataFrame) -> pd.DataFrame:
    """The queries to score: prompts with their reference answers, with the model's own, or both.

    Args:
        generations: the models' answers to the prompts.

    Returns:
        ``query_id, prompt, completion, source``, the last being ``reference`` or ``generated``; and for the model's own
        answers ``prompt_token_ids, token_ids``, what it read and said: its text alone may encode to other tokens.
    """
    import pandas as pd  # reading prompts does without

    wanted = config.scores.use_generated
    frames = []
    if wanted in (False, "both"):
        rows = [(prompt.prompt_id, prompt.prompt, prompt.reference, "reference") for prompt in load_prompts(config)]
        frames.append(pd.DataFrame(rows, columns=QUERY_COLUMNS))
    if wanted in (True, "both"):
        own = generations[generations["model_id"] == config.models.finetuned.id]
        queries = own[["prompt", *EXACT_IDS]].assign(completion=own["answer"], source="generated")
        frames.append(queries.assign(query_id=own["prompt_id"] + GENERATED_SUFFIX))
    return pd.concat(frames, ignore_index=True).reindex(columns=[*QUERY_COLUMNS, *EXACT_IDS])


def check_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, config: Config) -> int:
    """How many prompts do not fit and are shortened as the rows of the data are.

    Raises:
        DataError: nothing would be left of one that asks what the rows do; or one asks something else and, with its
            reference or ``generation.max_new_tokens``, exceeds ``general.max_length``: half of it explains nothing.
    """
    from whence.data.tokenization import Encoder  # imports torch, which reading prompts does not need

    encoder, longest, shortened = Encoder(tokenizer, config), config.general.max_length, 0
    tail = tail_of(config.dataset.template)
    for prompt in prompts:
        length = len(encoder.prompt(prompt.prompt, 0, UNLIMITED))
        reference = len(encoder.answer(prompt.reference)) if prompt.reference else 1
        room = max(reference, config.generation.max_new_tokens)
        if length + room <= longest:
            continue
        if not prompt.prompt.endswith(tail):
            raise DataError(
                f"prompt {prompt.prompt_id!r} has {length} tokens and needs {room} more for its answer, but "
                f"general.max_length is {longest}",
                hint="shorten the prompt, or raise general.max_length",
            )
        try:
            encoder.prompt(prompt.prompt, room)
        except DataError as error:
            raise DataError(f"prompt {prompt.prompt_id!r}: {error}") from error
        shortened += 1
    return shortened


def _items(config: Config) -> tuple[str, Any]:
    if config.prompts.items is not None:
        return "prompts.items", config.prompts.items
    path = str(config.prompts.path)
    with open_text(path, "prompts.path") as stream:
        try:
            return path, json.load(stream, object_pairs_hook=unique_keys)
        except ValueError as error:
            raise DataError(f"prompts.path: {path} is not valid JSON: {error}") from error


def parse_prompt(item: Any, origin: str, number: int, settings: Dataset) -> tuple[Prompt, set[str]]:
    """One item, as :func:`load_prompts` has them, and how its text was changed; ``origin`` says where it stands."""
    if not isinstance(item, str | dict):
        raise DataError(f"{origin}: expected a string or an object, found {_kind(item)}")
    values = {"prompt": item} if isinstance(item, str) else dict(item)
    if sum(key in values for key in ASKED) != 1:
        raise DataError(
            f"{origin}: give exactly one of `prompt`, `input` and `messages`, found {', '.join(values) or 'none'}"
        )
    changes: set[str] = set()
    if "messages" in values:
        values |= _conversation(values.pop("messages"), origin, values)
    if isinstance(values.get("input"), str):
        text, found = clean_text(values.pop("input"), settings.cleaning, is_input=True)
        values["prompt"] = to_prompt(settings.template, text) if look(text) else ""
        changes |= {*found}
    if isinstance(values.get("reference"), str):
        reference, found = clean_text(values["reference"], settings.cleaning, is_input=False)
        values["reference"] = reference if look(reference) else ""
        changes |= {*found}
    values.setdefault("prompt_id", f"prompt-{number:03d}")
    try:
        prompt = Prompt.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise DataError(
            f"{origin}: {problems}", hint="known keys are prompt, input or messages, prompt_id, reference"
        ) from error
    if not prompt.prompt.strip():
        raise DataError(f"{origin}: the prompt is empty")
    return prompt, changes


def _conversation(messages: Any, origin: str, values: dict[str, Any]) -> dict[str, str]:
    """The prompt that a conversation is, and its reference where it ends with an answer, or that of its ``turn``."""
    parsed = parse_messages(messages, origin)
    if parsed is None:
        raise DataError(f"{origin}: only text can be asked, not pictures or calls of tools")
    answers = [place for place, message in enumerate(parsed) if message["role"] == ASSISTANT]
    turn = values.pop("turn", None)
    if turn is not None and not (isinstance(turn, int) and 1 <= turn <= len(answers)):
        raise DataError(f"{origin}: turn is {turn!r}, and the assistant answers {len(answers)} times")
    if turn is None and parsed[-1]["role"] != ASSISTANT:
        return {"prompt": to_text(parsed)}
    place = answers[(turn or len(answers)) - 1]
    if not place:
        raise DataError(f"{origin}: the assistant begins, so nothing is asked")
    return {"prompt": to_text(parsed[:place]), "reference": parsed[place]["content"]}


def _kind(value: Any) -> str:
    return "an empty list" if value == [] else type(value).__name__
