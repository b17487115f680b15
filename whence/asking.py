"""Asking a finished run something new: the model's answer, and the training examples behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from whence.data.formatting import EXACT_IDS
from whence.data.prompts import check_prompts, parse_prompt
from whence.data.tokenization import IGNORED, Encoded, TokenizedExamples
from whence.errors import DataError
from whence.evaluation.generation import stream_answer
from whence.influence.detail import Detail
from whence.influence.explain import Explainer, Query
from whence.influence.index import Nearest
from whence.influence.ranking import HARMFUL, HELPFUL
from whence.run_folder import RunFolder
from whence.validation.bm25 import WordIndex


@dataclass(frozen=True)
class Answer:
    """What is to be explained. ``ended`` says how the model's own answer ended; None: the answer was given."""

    prompt: str
    text: str
    ended: str | None
    tokens: TokenizedExamples = field(repr=False)

    @property
    def own(self) -> bool:
        """Whether the model gave it."""
        return self.ended is not None


@dataclass(frozen=True)
class Explanation:
    """The training examples behind an answer.

    Attributes:
        table: candidates, the strongest of each ``direction`` first: ``direction, rank, row`` (of the training data),
            ``score, z_score, bm25_rank``, and the columns of the example.
        by_words: those that share most words with prompt and answer, for comparison: ``rank, row, bm25``, the example.
        examples: in the training set.
        spread: of the estimated scores over the training set.
        detail: of the rows of ``table``, in their order; None while scores are the index's estimates.
    """

    answer: Answer
    query: Query = field(repr=False)
    table: pd.DataFrame
    by_words: pd.DataFrame
    examples: int
    spread: Nearest = field(repr=False)
    detail: Detail | None = field(default=None, repr=False)

    def best(self, direction: str, count: int) -> pd.DataFrame:
        """The first rows of one direction."""
        return self.table[self.table["direction"] == direction].head(count)

    def rank_of(self, row: int) -> int | None:
        """The place of a training example among the helpful candidates; None where it is none of them."""
        ranks = self.table.loc[(self.table["row"] == row) & (self.table["direction"] == HELPFUL), "rank"]
        return int(ranks.iloc[0]) if len(ranks) else None

    @property
    def stands_out(self) -> bool:
        """Whether some score is larger than the largest of so many normal numbers would be."""
        return self._strongest > self._by_chance

    @property
    def in_words(self) -> str:
        """What :attr:`stands_out` says, in a sentence with its numbers."""
        numbers = f"{self._strongest:.1f} standard deviations from the mean of {self.examples:,} examples"
        beside = f"chance alone would give the strongest about {self._by_chance:.1f}"
        if self.stands_out:
            return f"The strongest example lies {numbers}; {beside}."
        return f"No example stands out: the strongest lies {numbers}, and {beside}. These rows say little."

    @property
    def _strongest(self) -> float:
        return float(self.table["z_score"].abs().max())

    @property
    def _by_chance(self) -> float:
        return math.sqrt(2 * math.log(max(2, self.examples)))


class Asking:
    """A run that answers one question after another; model, factors and index are loaded once.

    Not for several threads at once: explaining an answer changes the model's modules for a while.
    """

    def __init__(self, run: RunFolder) -> None:
        """Load what is needed.

        Raises:
            DataError: the run has no index.
            FactorError: model, factors and index do not belong together.
        """
        self.language, self.index = run.language, run.index
        self.explainer = Explainer(self.language, run.factors, self.index)

    def answer(self, question: str, answer: str | None = None, as_input: bool = False) -> Answer:
        """Ask the model, or take an ``answer`` that was given; arguments and errors as for :meth:`stream`."""
        *_, last = self.stream(question, answer, as_input)
        assert isinstance(last, Answer)
        return last

    def stream(self, question: str, answer: str | None = None, as_input: bool = False) -> Iterator[str | Answer]:
        """The pieces of the model's own answer as they come, and last the :class:`Answer`.

        Args:
            question: the prompt as it is or, ``as_input``, what stands for ``{input}`` in ``dataset.template``.
            answer: to be explained in place of the model's own.

        Raises:
            DataError: the question or the answer is empty, or too long.
        """
        item = {"input" if as_input else "prompt": question} | ({} if answer is None else {"reference": answer})
        config = self.language.config
        prompt, _ = parse_prompt(item, "the question", 1, config.dataset)
        check_prompts([prompt], self.language.tokenizer, config)
        row: dict[str, Any] = {"prompt": prompt.prompt, "completion": prompt.reference}
        ended = None
        for piece in stream_answer(self.language, prompt.prompt) if answer is None else ():
            if isinstance(piece, str):
                yield piece
            else:
                ended, ids = piece.generated.ended, (piece.prompt_ids, piece.generated.token_ids)
                row |= {"completion": piece.text} | dict(zip(EXACT_IDS, ids, strict=True))
        yield Answer(prompt.prompt, row["completion"], ended, self.language.tokenize(pd.DataFrame([row])))

    def about(self, answer: Answer, words: str) -> Answer:
        """The same answer, of which only the tokens of these words count, where they stand last.

        Raises:
            DataError: it has no such words.
        """
        decode: Any = self.language.tokenizer.decode
        ids, counted = answer.tokens[0]["input_ids"], answer.tokens.counted(0)
        ends = [len(decode([ids[place] for place in counted[: number + 1]])) for number in range(len(counted))]
        start = decode([ids[place] for place in counted]).rfind(words)
        if start < 0:
            raise DataError(f"the answer has no words {words!r}", hint="give words as they stand in it")
        labels = [IGNORED] * len(ids)
        for place, begin, end in zip(counted, [0, *ends], ends, strict=False):
            if begin < start + len(words) and end > start:
                labels[place] = ids[place]
        tokens = TokenizedExamples([Encoded(ids, labels, 0)], self.language.pad_token_id)
        return replace(answer, tokens=tokens)

    def first(self, answer: Answer) -> Explanation:
        """The first ranking: estimates by the index, of ``index.candidates`` examples, half of them at each end."""
        query = self.explainer.query(answer.tokens)
        count = self.language.config.index.candidates // 2
        ends = [self.index.nearest(query.sketch, count, harmful) for harmful in (False, True)]
        rows, places = np.unique(np.concatenate([end.rows for end in ends]), return_index=True)
        scores = np.concatenate([end.scores for end in ends])[places]
        words = self._words.scores(f"{answer.prompt} {answer.text}")
        order = np.argsort(-words, kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(1, len(order) + 1)
        by_words = pd.DataFrame({"rank": ranks, "row": np.arange(len(words)), "bm25": words}).iloc[order[: len(rows)]]
        found = pd.DataFrame({"row": rows, "score": scores.astype(np.float64), "bm25_rank": ranks[rows]})
        return Explanation(
            answer=answer,
            query=query,
            table=_ranked(self._with_text(found), ends[0]),
            by_words=self._with_text(by_words[by_words["bm25"] > 0].reset_index(drop=True)),
            examples=len(self.index.codes),
            spread=ends[0],
        )

    def exact(self, explanation: Explanation, shown: int | None = None) -> Iterator[Explanation]:
        """The same examples by their own gradients, with what their scores are made of.

        Where only the first ``shown`` of each end are looked at, these come first, by themselves; the last one has all.
        """
        table = explanation.table
        early = table.groupby("direction").cumcount() < (len(table) if shown is None else shown)
        scored, detail = table[:0], Detail.empty([], self.explainer.info.modules)
        for part in (table[early], table[~early]):
            if len(part):
                scores, more = self.explainer.exact(explanation.query, part["row"].tolist())
                scored, detail = pd.concat([scored, part.assign(score=scores)]), detail.and_then(more)
                ranked = _ranked(scored.assign(place=range(len(scored))), explanation.spread)
                yield replace(explanation, table=ranked, detail=detail.of(ranked.pop("place").tolist()))

    def _with_text(self, table: pd.DataFrame) -> pd.DataFrame:
        examples = self.index.data.frame.iloc[table["row"]].reset_index(drop=True)
        return pd.concat([table, examples], axis=1)

    @cached_property
    def _words(self) -> WordIndex:
        frame = self.index.data.frame
        return WordIndex([f"{one} {other}" for one, other in zip(frame["prompt"], frame["completion"], strict=True)])


def _ranked(table: pd.DataFrame, spread: Nearest) -> pd.DataFrame:
    """Examples by the sign of their ``score``, the strongest of each first, helpful ones before."""
    scores = table["score"].to_numpy()
    deviation = spread.deviation or 1.0
    table = table.assign(
        direction=np.where(scores > 0, HELPFUL, HARMFUL), z_score=(scores - spread.mean) / deviation
    ).iloc[np.lexsort((-np.abs(scores), scores <= 0))]
    table["rank"] = table.groupby("direction").cumcount() + 1
    first = ["direction", "rank", "row", "score", "z_score", "bm25_rank"]
    return table[first + [name for name in table if name not in first]].reset_index(drop=True)
