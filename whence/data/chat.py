"""Conversations: as text that people read, and as the tokens of a chat template with its assistant turns told apart.

As text a conversation is one turn after another, each behind its role in brackets (``[user] Hello``); a single user
turn is its text alone. Both ways are exact, so a conversation travels wherever a prompt does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from whence.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")
ASSISTANT = "assistant"
THOUGHTS = ("reasoning_content", "thinking")  # keys of a message whose text comes before its content, in <think> tags
Message = dict[str, str]
_ROLE = f"\\[(?:{'|'.join(ROLES)})\\] "
_TURN = re.compile(rf"^\[({'|'.join(ROLES)})\] ", re.MULTILINE)
_STAND_IN = "\ufdd0"  # for the content of a turn: a code point that no text has
_MARKS_ANSWERS = re.compile(r"{%-?\s*generation\b")


def to_text(messages: Sequence[Message]) -> str:
    """The conversation as text; a line of a turn that begins like a turn gets a backslash before it."""
    turns = [(message["role"], re.sub(rf"^(\\*{_ROLE})", r"\\\1", message["content"], flags=re.MULTILINE))
             for message in messages]  # fmt: skip
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n".join(f"[{role}] {content}" for role, content in turns)


def to_messages(text: str) -> list[Message]:
    """The conversation that :func:`to_text` has written; any other text is a turn of the user."""
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        return [{"role": "user", "content": _unescaped(text)}]
    ends = [mark.start() - 1 for mark in marks[1:]] + [len(text)]
    return [{"role": mark[1], "content": _unescaped(text[mark.end() : end])}
            for mark, end in zip(marks, ends, strict=True)]  # fmt: skip


def _unescaped(content: str) -> str:
    return re.sub(rf"^\\(\\*{_ROLE})", r"\1", content, flags=re.MULTILINE)


class ChatError(DataError):
    """The chat template cannot write a conversation."""


class Conversation(NamedTuple):
    """The tokens of a conversation.

    Attributes:
        ids: token ids.
        turns: for each token the number of the assistant turn that it belongs to, from 0, or -1.
        texts: the text of each token; special tokens have none.
    """

    ids: list[int]
    turns: list[int]
    texts: list[str]


class ChatTemplate:
    """A tokenizer's chat template, or one in its place; ``template`` is its text, with its variables set."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the tokenizer's own where ``template`` is None.

        ``variables`` are set in the text of the template, so that it says all of what a model was trained with
        wherever it travels: with the tokenizer, and into fingerprints.

        Raises:
            ConfigError: the tokenizer has none, or does not tell where its tokens stand in a text.
        """
        if not (template or tokenizer.chat_template):
            raise ConfigError(
                f"dataset.chat_template: the tokenizer of {tokenizer.name_or_path!r} has no chat template",
                hint="give one there (Jinja, as in transformers), or use a model that was trained to chat",
            )
        if not tokenizer.is_fast:
            raise ConfigError(
                f"dataset.chat_template: the tokenizer of {tokenizer.name_or_path!r} does not tell of which characters "
                "its tokens are",
                hint="use a model with a fast tokenizer",
            )
        text = template or str(tokenizer.chat_template)
        values = {name: "none" if value is None else json.dumps(value) for name, value in (variables or {}).items()}
        set_here = "".join(f"{{%- set {name} = {value} %}}" for name, value in values.items())
        self._tokenizer, self.template = tokenizer, set_here + text.removeprefix(set_here)
        self._marks = bool(_MARKS_ANSWERS.search(self.template))
        added = tokenizer.added_tokens_decoder.values()
        marks = "|".join(re.escape(str(token)) for token in added if token.special) or "(?!)"
        self._ends = re.compile(marks)

    def conversation(self, messages: Sequence[Message], longest: int | None = None) -> tuple[Conversation, int]:
        """The tokens up to the end of the last assistant turn, and how many were left out to fit into ``longest``.

        Whole exchanges are left out, the oldest first, never system messages or a part of a turn.

        Raises:
            DataError: the template refuses the conversation, its turns do not add up, or the last exchange is too long.
        """
        return self._fitting(messages, longest, self._rendered)

    def prompt(self, messages: Sequence[Message], longest: int | None = None) -> tuple[list[int], int]:
        """The tokens that the model answers, shortened as in :meth:`conversation`; errors are the same."""
        found, cut = self._fitting(messages, longest, self._asked)
        return found.ids, cut

    def _fitting(self, messages: Sequence[Message], longest: int | None, render: Any) -> tuple[Conversation, int]:
        whole: Conversation | None = None
        for kept in _shorter(messages):
            rendered: Conversation = render(kept)
            whole = whole or rendered
            if longest is None or len(rendered.ids) <= longest:
                return rendered, len(whole.ids) - len(rendered.ids)
        raise DataError(
            f"a conversation has {len(rendered.ids)} tokens in its last exchange, and {longest} have room: "
            f"{messages[-1]['content'][:60]!r}",
            hint="raise general.max_length",
        )

    def _asked(self, messages: Sequence[Message]) -> Conversation:
        tokens = self._tokens(self._render(messages, ask=True))
        return Conversation(tokens["input_ids"], [-1] * len(tokens["input_ids"]), [])

    def _rendered(self, messages: Sequence[Message]) -> Conversation:
        text = self._render(messages)
        tokens = self._tokens(text)
        ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
        if self._marks:
            turns = self._marked(messages, ids)
        else:
            spans = [self._span(messages, place, text) for place, message in enumerate(messages)
                     if message["role"] == ASSISTANT]  # fmt: skip
            turns = [next((turn for turn, (start, stop) in enumerate(spans) if start <= first < stop), -1)
                     for first, _ in offsets]  # fmt: skip
        end = max((place for place, turn in enumerate(turns) if turn >= 0), default=-1) + 1
        if not end:
            raise ChatError(f"the chat template shows no answer of the assistant: {messages[-1]['content'][:60]!r}")
        special = {number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        texts = [
            "" if token in special else text[first:last] for token, (first, last) in zip(ids, offsets, strict=True)
        ]
        return Conversation(ids[:end], turns[:end], texts[:end])

    def _marked(self, messages: Sequence[Message], ids: list[int]) -> list[int]:
        """By the template's own marks (``{% generation %}``); what follows another token begins another turn."""
        found: Any = self._tokenizer.apply_chat_template(
            list(messages), chat_template=self.template, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        if found["input_ids"] != ids:
            raise ChatError("the chat template's text and its tokens differ")
        turns, turn, before = [], -1, 0
        for answered in found["assistant_masks"]:
            turn += answered and not before
            turns.append(turn if answered else -1)
            before = answered
        return turns

    def _span(self, messages: Sequence[Message], place: int, text: str) -> tuple[int, int]:
        """First character, and the one after the last, of an assistant turn with the token that ends it.

        A turn begins where the text that asks for it ends, whatever the template writes there (as an empty thought).
        Where the whole conversation does not begin like that, as with templates that write a thought into the last
        answer alone, it begins with what the template writes between a question and its answer.

        Raises:
            ChatError: the turns rendered one by one do not add up to the whole.
        """
        before, shown, after = self._around(messages, place)
        begin, end = self._begin(messages, place, text, before), len(text) - len(after)
        if not shown or begin is None or not text.endswith(after) or end < begin:
            raise ChatError(
                f"the chat template's turns do not add up to the whole: turn {place + 1} of "
                f"{messages[0]['content'][:60]!r} is written in another way by itself",
                hint="set the template's variables so that it asks for answers as it writes them "
                "(dataset.chat_template_kwargs, as `enable_thinking: false`), "
                "or give a dataset.chat_template that marks answers by {% generation %}",
            )
        ended = self._ends.match(text, end)
        return begin, ended.end() if ended else end

    def _begin(self, messages: Sequence[Message], place: int, text: str, before: str) -> int | None:
        """Where an assistant turn begins in the ``text``, whose content follows ``before``; None: it does not show."""
        asked = self._render(messages[:place], ask=True)
        if text.startswith(asked):
            return len(asked)
        alone, _, _ = self._around(messages[: place + 1], place)
        lead = alone[len(asked) :]
        if text.startswith(before):
            if alone.startswith(asked) and before.endswith(lead):
                return len(before) - len(lead)
            if asked.startswith(before) and any(later["role"] == ASSISTANT for later in messages[place + 1 :]):
                return len(before)  # a thought that was asked for is not shown any more
        shown = self._render(messages[:place])  # by a template that asks in words of its own
        return len(shown) if before.startswith(shown) and not before[len(shown) :].strip() else None

    def _around(self, messages: Sequence[Message], place: int) -> tuple[str, str, str]:
        """What the template writes before the content of a turn, in its place (nothing, if it drops it) and behind."""
        content = {**messages[place], "content": _STAND_IN}
        return self._render([*messages[:place], content, *messages[place + 1 :]]).partition(_STAND_IN)

    def _render(self, messages: Sequence[Message], ask: bool = False) -> str:
        from jinja2 import TemplateError  # reading prompts does without

        try:
            return cast(str, self._tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=ask
            ))  # fmt: skip
        except (TemplateError, TypeError, KeyError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ChatError(f"the chat template refuses a conversation of {roles}: {error}") from error

    def _tokens(self, text: str) -> Any:
        return self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


def _shorter(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The conversation, then without its oldest exchange, and so on to the last one; system messages stay."""
    first = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    starts = [place for place, message in enumerate(rest) if message["role"] == "user"]
    yield list(messages)
    for start in starts:
        if start > 0:
            yield [*first, *rest[start:]]


def parse_messages(value: Any, origin: str) -> list[Message] | None:
    """Messages as a dataset has them: a list of ``role`` and ``content``; None where some are not text alone.

    Raises:
        DataError: it is no such list.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: expected a list of messages with role and content, found {str(value)[:60]!r}")
    messages = [_message(item, f"{origin}, message {number}") for number, item in enumerate(value, 1)]
    return None if None in messages else cast(list[Message], messages)


def _message(item: Any, origin: str) -> Message | None:
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        raise DataError(f"{origin}: expected role and content, found {str(item)[:60]!r}")
    role = "system" if item["role"] == "developer" else item["role"]
    if role not in ROLES:
        raise DataError(f"{origin}: the role is {role!r}, and can be {', '.join(ROLES)}")
    if not isinstance(item["content"], str) or item.get("tool_calls"):  # pictures, or calls of tools
        return None
    thought = next((item[name] for name in THOUGHTS if item.get(name)), None)
    content = f"<think>\n{thought.strip()}\n</think>\n\n{item['content']}" if thought else item["content"]
    return {"role": role, "content": content}
