"""Question-answer formatting: rows become prompts through the template, answers stay as they are."""

from __future__ import annotations

PLACE = "{input}"
UNLIMITED = 2**31  # tokens: nothing is shortened

GENERATED_SUFFIX = "/generated"  # of the ids of queries whose answer is the model's own, not the reference

EXACT_IDS = ("prompt_token_ids", "token_ids")  # columns of the tokens of such a query, of its prompt and its answer


def to_prompt(template: str, text: str) -> str:
    """The template with ``text`` where ``{input}`` stands (plain replacement: braces in the text mean nothing).

    White space at the template's end is left off: the answer brings its own space, and the line break a YAML block
    ends with would stand between question and answer.
    """
    return template.rstrip().replace(PLACE, text)


def tail_of(template: str) -> str:
    """What follows ``{input}``: the question, which survives when a long text is shortened."""
    return template.rstrip().partition(PLACE)[2]
