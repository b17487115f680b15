"""The service over a real, tiny run: what it sends is what asking the run gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking_helpers import THINGS

from whence.asking import Answer, Asking
from whence.data.tokenization import IGNORED, Encoded, TokenizedExamples
from whence.errors import ConfigError, DataError
from whence.report.words import visible
from whence.run_folder import load_run
from whence.serving.events import Question, Rows
from whence.serving.service import Service
from whence.serving.source import Keeper, LocalRun


@pytest.fixture
def service(asked_run: Path) -> Service:
    return Service(load_run(asked_run))


def events_of(service: Service, **question: Any) -> list[Any]:
    return list(service.explain(Question(**{"question": "The lens is"} | question)))


def test_the_model_s_own_answer_comes_in_pieces_and_then_whole(service: Service, asked_run: Path) -> None:
    events = events_of(service, base=True)
    kinds = [event.event for event in events]
    assert kinds[-4:] == ["answer", "base", "rows", "rows"]
    assert set(kinds[:-4]) == {"token"}
    own = Asking(load_run(asked_run)).answer("The lens is")
    answer, base = events[-4], events[-3]
    assert "".join(event.text for event in events[:-4]).strip() == answer.text == visible(own.text)
    assert base.text == answer.text, "the base of this run is the same model"
    assert answer.ended == own.ended


def test_turns_before_the_question_are_the_prompt_of_a_model_that_chats(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    with pytest.raises(DataError, match="for a model that was trained on such"):
        events_of(service, before=before)
    asked: list[str] = []
    stream = service._asking.stream
    monkeypatch.setattr(service._asking, "stream", lambda prompt, *more: asked.append(prompt) or stream("x", *more))
    service.chats = True
    events_of(service, before=before, answer="lens")
    assert asked == ["[user] Who?\n[assistant] Ada.\n[user] The lens is"]


def test_rows_are_those_of_asking_with_words_that_add_up(service: Service, asked_run: Path) -> None:
    *_, estimated, shown, exact = events_of(service, answer="valve", rows=3)
    asking = Asking(load_run(asked_run))
    *_, expected = asking.exact(asking.first(asking.answer("The lens is", "valve")))
    assert isinstance(shown, Rows)
    assert isinstance(exact, Rows)
    assert (estimated.exact, shown.exact, exact.exact) == (False, True, True)
    assert {row.id for row in shown.rows} == {row.id for row in estimated.rows}, "what is looked at is exact first"
    for end in ("helpful", "harmful"):
        rows = [row for row in exact.rows if row.end == end]
        best = expected.best(end, 3)
        assert [row.id for row in rows] == best["example_id"].tolist()
        np.testing.assert_allclose([row.score for row in rows], best["score"], rtol=1e-5)
        for row in rows:
            number = int(row.id)
            assert "".join(row.pieces) == f"The {THINGS[number]} is {THINGS[-1 - number]}"
            assert sum(row.parts) == pytest.approx(row.score, rel=2e-3)
            assert len(row.layers or []) == len(exact.layers) == 2
            assert sum(map(abs, row.kinds or [])) == pytest.approx(1, abs=2e-3)
    first = next(row for row in exact.rows if row.end == "helpful")
    assert (first.rank, first.influence_rank, first.standing) == (1, 1, "the most helpful of 14")
    assert [row.id for row in exact.rows if row.end == "overlap"] == [
        *expected.by_words.head(5)["example_id"]
    ]  # fmt: skip


def test_the_shares_of_words_asked_about_add_up_to_the_whole_answer(asked_run: Path) -> None:
    """The loss is a sum over tokens, and scores are linear in the query's gradient."""
    asking = Asking(load_run(asked_run))
    whole = asking.answer("The lens is", "valve and loom")
    words = [asking.about(whole, word) for word in ("valve", "and", "loom")]
    [end] = set(whole.tokens.counted(0)) - {place for part in words for place in part.tokens.counted(0)}
    ids = whole.tokens[0]["input_ids"]
    labels = [ids[place] if place == end else IGNORED for place in range(len(ids))]
    parts = [*(part.tokens for part in words), TokenizedExamples([Encoded(ids, labels, 0)], 0)]
    rows = list(range(len(THINGS)))
    scores = [asking.explainer.exact(asking.explainer.query(part), rows).scores for part in parts]
    expected = asking.explainer.exact(asking.explainer.query(whole.tokens), rows).scores
    np.testing.assert_allclose(np.sum(scores, axis=0), expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    with pytest.raises(DataError, match="'boiler'"):
        asking.about(whole, "boiler")


def test_an_example_is_opened_with_its_nearest_by_words(service: Service) -> None:
    example = service.open("0")
    assert example is not None
    assert example.prompt == "The lens is"
    assert example.nearest[0].similarity > 0
    assert example.id not in [near.id for near in example.nearest]
    assert example.influences == [], "this run has scored no queries"
    assert service.open("no such row") is None


def test_a_model_that_answers_nothing_to_the_first_question_serves_all_the_same(
    asked_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: Asking, question: str, *_: object) -> Iterator[Answer]:
        yield Answer(question, "", "empty", TokenizedExamples([Encoded([5, 6], [IGNORED, IGNORED], 0)], 0))

    monkeypatch.setattr(Asking, "stream", silent)
    keeper = Keeper(LocalRun(asked_run))
    keeper.refresh()
    assert keeper.service is not None
    with pytest.raises(DataError, match="the answer is empty"):
        list(keeper.service.explain(Question(question="The lens is")))


def test_a_run_on_this_machine_is_served_by_its_own_settings_but_for_those_given(asked_run: Path) -> None:
    assert LocalRun(asked_run).run.config.serving.waiting == 20
    run = LocalRun(asked_run, {"serving.waiting": 3, "index.candidates": 4}).run
    assert run.config.serving.waiting == 3
    assert run.language.config.index.candidates == 4
    with pytest.raises(ConfigError, match=r"serving\.nothing"):
        LocalRun(asked_run, {"serving.nothing": 3}).run.config  # noqa: B018
