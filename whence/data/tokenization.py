"""From text to token ids, and the one loss mask that training, factors and scores share.

An example is ``prompt + " " + completion`` followed by the end-of-text token or, where ``dataset.chats``, the turns of
a chat template (:mod:`whence.data.chat`). The mask is carried by ``labels``: -100 where the loss does not count, as
everywhere in transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from whence.config import Config
from whence.data.chat import ASSISTANT, ChatTemplate, Message, to_messages
from whence.data.formatting import EXACT_IDS, tail_of
from whence.errors import DataError
from whence.progress import progress

IGNORED = -100
_ANCHOR = ":"
OWN = "tokenizer"  # dataset.chat_template: the tokenizer's own

Spans = Sequence[tuple[int, int]]
"""First character, and the one after the last, of each token; empty where the tokenizer does not tell."""


class _Tokens(NamedTuple):
    """The tokens of a text."""

    text: str
    ids: list[int]
    spans: Spans

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> _Tokens:
        # verbose=False: that a text is longer than the model takes is what `_shorten` is for
        encoding = tokenizer(
            text, add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast, verbose=False
        )  # fmt: skip
        return cls(text, list(encoding["input_ids"]), encoding["offset_mapping"] if tokenizer.is_fast else [])


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one example (equal lengths), and how many prompt tokens were cut to fit."""

    input_ids: list[int]
    labels: list[int]
    truncated: int


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    max_length: int,
    loss_on: str = "answer",
    tail: str = "",
) -> Encoded:
    """Encode an example of at most ``max_length`` tokens.

    The token ids begin with those of :func:`encode_prompt`, so that a model is trained on what it is later asked. A
    prompt that does not fit loses tokens just before ``tail`` (the question after the text); one that does not end
    with ``tail`` asks another question and loses tokens at its beginning. The answer is never cut.

    Args:
        loss_on: ``all`` counts the loss of every token, anything else that of answer and end-of-text token.

    Raises:
        DataError: answer and question leave no room for the text within ``max_length``.
    """
    answer = [*_answer(tokenizer, completion).ids, tokenizer.eos_token_id]
    asked, cut = _shorten(tokenizer, prompt, max_length - len(answer), tail)
    return _labelled(_without(asked.ids, cut), answer, loss_on, len(cut))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, max_length: int, tail: str = ""
) -> list[int]:
    """Token ids of a prompt, shortened as in :func:`encode` to leave ``max_new_tokens`` of ``max_length`` free."""
    asked, cut = _shorten(tokenizer, prompt, max_length - max_new_tokens, tail)
    return _without(asked.ids, cut)


def token_texts(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, max_length: int, tail: str = ""
) -> list[str]:
    """The text of every token that :func:`encode` gives for the same arguments.

    Together they are ``prompt + " " + completion``, without what was cut: a character that is several tokens stands
    with the first of them, what the tokenizer passes over (white space, for some) with the token after it, and special
    tokens have none. Without the tokenizer's offsets a token's text is what it decodes to by itself.

    Raises:
        DataError: as :func:`encode`.
    """
    answer = _answer(tokenizer, completion)
    asked, cut = _shorten(tokenizer, prompt, max_length - len(answer.ids) - 1, tail)
    return [*_without(_texts(tokenizer, asked), cut), *_texts(tokenizer, answer), ""]


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The tokens of an answer exactly as :func:`encode` has them, end of text included."""
    return *_answer(tokenizer, text).ids, int(tokenizer.eos_token_id)


@dataclass(frozen=True)
class Encoder:
    """How a run's prompts and answers become tokens, by its settings."""

    tokenizer: PreTrainedTokenizerBase
    config: Config

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """The template they are turns of; None where they are plain text."""
        settings = self.config.dataset
        if not settings.chats:
            return None
        template = None if settings.chat_template == OWN else settings.chat_template
        return ChatTemplate(self.tokenizer, template, settings.chat_template_kwargs)

    def example(self, prompt: str, completion: str, max_length: int | None = None) -> Encoded:
        """An example of at most ``max_length`` tokens, ``general.max_length`` where it is None; see :func:`encode`.

        Raises:
            DataError: answer and question do not fit.
        """
        longest, loss_on = max_length or self.config.general.max_length, self.config.dataset.loss_on
        if self.chat is None:
            return encode(self.tokenizer, prompt, completion, longest, loss_on, self._tail)
        found, cut = self.chat.conversation(_answered(prompt, completion), longest)
        last = max(found.turns)
        counted = {"all": found.ids, "answer": range(last + 1), "last": (last,)}[loss_on]
        labels = [token if loss_on == "all" or turn in counted else IGNORED
                  for token, turn in zip(found.ids, found.turns, strict=True)]  # fmt: skip
        return Encoded(found.ids, labels, cut)

    def prompt(self, prompt: str, max_new_tokens: int, max_length: int | None = None) -> list[int]:
        """The tokens that the model goes on from, shortened to leave ``max_new_tokens`` of ``max_length`` free."""
        longest = max_length or self.config.general.max_length
        if self.chat is None:
            return encode_prompt(self.tokenizer, prompt, max_new_tokens, longest, self._tail)
        return self.chat.prompt(to_messages(prompt), longest - max_new_tokens)[0]

    def texts(self, prompt: str, completion: str) -> list[str]:
        """The text of every token that :meth:`example` gives for the same arguments."""
        longest = self.config.general.max_length
        if self.chat is None:
            return token_texts(self.tokenizer, prompt, completion, longest, self._tail)
        return self.chat.conversation(_answered(prompt, completion), longest)[0].texts

    def answer(self, text: str) -> tuple[int, ...]:
        """The tokens of an answer exactly as training sees it, its end included."""
        if self.chat is None:
            return answer_ids(self.tokenizer, text)
        found, _ = self.chat.conversation(_answered("?", text))
        return tuple(token for token, turn in zip(found.ids, found.turns, strict=True) if turn >= 0)

    @cached_property
    def end(self) -> int:
        """The token that ends an answer: that of the text, or of a turn."""
        if self.chat is None:
            return int(self.tokenizer.eos_token_id)
        last = self.answer("x")[-1]
        added = self.tokenizer.added_tokens_decoder.get(last)
        return last if added is not None and added.special else int(self.tokenizer.eos_token_id)

    @property
    def _tail(self) -> str:
        return tail_of(self.config.dataset.template)


def _answered(prompt: str, completion: str) -> list[Message]:
    return [*to_messages(prompt), {"role": ASSISTANT, "content": completion}]


def _labelled(prompt: list[int], answer: list[int], loss_on: str, truncated: int = 0) -> Encoded:
    labels = [IGNORED] * len(prompt) if loss_on != "all" else prompt
    return Encoded(prompt + answer, labels + answer, truncated)


def _texts(tokenizer: PreTrainedTokenizerBase, tokens: _Tokens) -> list[str]:
    if not tokenizer.is_fast:
        return [str(tokenizer.decode([token], skip_special_tokens=True)) for token in tokens.ids]
    texts, told = [], 0
    for _, stop in tokens.spans:
        texts.append(tokens.text[told:stop])
        told = max(told, stop)
    last = max((place for place, text in enumerate(texts) if text), default=None)
    if last is not None:
        texts[last] += tokens.text[told:]
    return texts


def _answer(tokenizer: PreTrainedTokenizerBase, completion: str) -> _Tokens:
    """The tokens of ``" " + completion`` as they stand inside a text.

    SentencePiece tokenizers put a space of their own before whatever they are given, so the answer alone would get
    two; tokenizing it behind an anchor shows the tokens a pretrained model knows.
    """
    anchor = _Tokens.of(tokenizer, _ANCHOR, special=False).ids
    alone = f" {completion}"
    joint = _Tokens.of(tokenizer, _ANCHOR + alone, special=False)
    if joint.ids[: len(anchor)] != anchor:
        return _Tokens.of(tokenizer, alone, special=False)
    spans = [(start - len(_ANCHOR), stop - len(_ANCHOR)) for start, stop in joint.spans[len(anchor) :]]
    return _Tokens(alone, joint.ids[len(anchor) :], spans)


def _shorten(tokenizer: PreTrainedTokenizerBase, prompt: str, room: int, tail: str) -> tuple[_Tokens, range]:
    """The prompt's tokens, and the places of those to leave out so that at most ``room`` are left."""
    tokens = _Tokens.of(tokenizer, prompt, special=True)
    if tokens.ids[-1:] == [tokenizer.eos_token_id]:  # some tokenizers end every text; the answer is still to come
        tokens = _Tokens(prompt, tokens.ids[:-1], tokens.spans[:-1])
    ids, spans = tokens.ids, tokens.spans
    cut = len(ids) - room
    if cut <= 0:
        return tokens, range(0)
    own_tail = prompt.endswith(tail)
    question = _tail_tokens(spans, prompt, tail, tokenizer) if own_tail else 0
    head = int(ids[:1] == [tokenizer.bos_token_id])
    if room <= head + question:
        raise DataError(
            f"no room for the text of a prompt: {max(room, 0)} tokens are left for it, the question after it takes "
            f"{question}: {prompt[:60]!r}",
            hint="raise general.max_length, or shorten dataset.template or the answer",
        )
    if own_tail:
        start, stop = room - question, len(ids) - question
        while start > head and _inside_character(spans, start):
            start -= 1
    else:
        start, stop = head, head + cut
        while stop < len(ids) and _inside_character(spans, stop):
            stop += 1
    return tokens, range(start, stop)


def _without(values: list[Any], cut: range) -> list[Any]:
    return values[: cut.start] + values[cut.stop :]


def _tail_tokens(spans: Spans, prompt: str, tail: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many of the prompt's last tokens hold a character of ``tail``."""
    if not spans:
        return len(tokenizer(tail, add_special_tokens=False)["input_ids"])
    return sum(stop > len(prompt) - len(tail) for _, stop in spans)


def _inside_character(spans: Spans, index: int) -> bool:
    """Whether the tokens before and at ``index`` are bytes of the same character, which must not be torn."""
    return bool(spans) and spans[index][0] < spans[index - 1][1]


_Row = tuple[np.ndarray, np.ndarray, int]  # token ids, labels, how many tokens were cut


class TokenizedExamples(Dataset[dict[str, list[int]]]):
    """Examples as token ids: items are ``{"input_ids": [...], "labels": [...]}``, lists of int of equal length.

    They know what short ones are padded with, so that whoever has examples can make batches of them.
    """

    def __init__(self, encoded: Sequence[Encoded], pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id
        # Arrays and not lists: a million Python ints take ten times the memory, and once more in each loader process.
        self._rows = [(np.array(e.input_ids, np.int32), np.array(e.labels, np.int32), e.truncated) for e in encoded]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, config: Config) -> TokenizedExamples:
        """Encode the columns ``prompt`` and ``completion`` by the settings of ``config``.

        Rows that have them are made of their ``prompt_token_ids`` and ``token_ids`` instead, exactly: what a model
        said need not be what its text encodes to, and has an end-of-text token only if the model produced one.

        Raises:
            DataError: an answer does not fit within ``general.max_length``.
        """
        encoder, loss_on = Encoder(tokenizer, config), config.dataset.loss_on
        exact = (frame[name] if name in frame else [None] * len(frame) for name in EXACT_IDS)
        rows = zip(frame["prompt"], frame["completion"], *exact, strict=True)
        shown = progress(rows, desc="tokenize", unit="row", total=len(frame))
        encoded = [
            _labelled(list(prompt_ids), list(ids), loss_on)
            if isinstance(ids, Sequence | np.ndarray)
            else encoder.example(prompt, answer)
            for prompt, answer, prompt_ids, ids in shown
        ]
        return cls(encoded, int(tokenizer.pad_token_id))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids, labels, _ = self._rows[index]
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The examples at ``indices`` as a padded batch."""
        return self.collate([self[index] for index in indices])

    def collate(self, items: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Pad items on the right: ``input_ids``, ``attention_mask``, ``labels``, each ``[batch, longest]`` int64."""
        shape = len(items), max(len(item["input_ids"]) for item in items)
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        batch = {name: torch.full(shape, fill) for name, fill in fills.items()}
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            batch["input_ids"][row, :length] = torch.tensor(item["input_ids"])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.tensor(item["labels"])
        return batch

    @property
    def lengths(self) -> list[int]:
        """Tokens per example."""
        return [len(ids) for ids, _, _ in self._rows]

    def counted(self, index: int) -> list[int]:
        """Places of the tokens of an example whose loss counts."""
        return [place for place, label in enumerate(self._rows[index][1]) if label != IGNORED]

    def turns(self, index: int) -> list[range]:
        """Places of the answers of an example: of a conversation whose assistant's turns count, one for each.

        They are told apart by what does not count between them; one is all there is where everything counts.
        """
        counted = self._rows[index][1] != IGNORED
        edges = np.flatnonzero(np.diff(np.concatenate([[False], counted, [False]]))).tolist()
        return [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]

    def by_turn(self, indices: Sequence[int]) -> TokenizedExamples:
        """Of the examples at ``indices`` their :meth:`turns`, each an example of which nothing else counts."""
        rows = []
        for index in indices:
            ids, labels, cut = self._rows[index]
            turns = self.turns(index)
            for turn in turns if len(turns) > 1 else []:
                alone = np.full_like(labels, IGNORED)
                alone[turn.start : turn.stop] = labels[turn.start : turn.stop]
                rows.append((ids, alone, cut))
            rows += [self._rows[index]] if len(turns) <= 1 else []
        return self._of(rows)

    @property
    def truncated(self) -> int:
        """Examples whose prompt was shortened."""
        return sum(cut > 0 for _, _, cut in self._rows)

    def subset(self, indices: Sequence[int]) -> TokenizedExamples:
        """The examples at ``indices``, in that order."""
        return self._of([self._rows[index] for index in indices])

    def without(self, indices: Sequence[int]) -> TokenizedExamples:
        """The same examples, but the loss of those at ``indices`` does not count: absent, each from its own place."""
        rows = list(self._rows)
        for index in indices:
            ids, labels, cut = rows[index]
            rows[index] = (ids, np.full_like(labels, IGNORED), cut)
        return self._of(rows)

    def _of(self, rows: list[_Row]) -> TokenizedExamples:
        examples = TokenizedExamples([], self.pad_token_id)
        examples._rows = rows
        return examples

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over token ids and loss mask."""
        digest = hashlib.sha256()
        for ids, labels, _ in self._rows:
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes() + labels.astype("<i4").tobytes())
        return digest.hexdigest()
