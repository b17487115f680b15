"""Asking a finished run: scores are those of scoring the same answer, and everybody is told how sure it is."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from asking_helpers import THINGS

import whence
from whence.asking import Asking
from whence.cli import main
from whence.errors import DataError
from whence.influence.ranking import best_first
from whence.validation.bm25 import bm25_scores


@pytest.mark.parametrize("given", [None, "valve"])
def test_the_exact_rows_are_those_of_scoring_the_same_answer(asked_run, tmp_path, given) -> None:
    opened = whence.load_run(asked_run)
    asking = Asking(opened)
    answer = asking.answer("The lens is", given)
    assert (answer.own, answer.text) == (given is None, answer.text if given is None else given)
    estimated = asking.first(answer)
    *_, exact = asking.exact(estimated)

    said = {"prompt": ["The lens is"], "completion": [answer.text]}
    if given is None:
        tokens = answer.tokens[0]
        counted = [label != -100 for label in tokens["labels"]]
        ids = np.array(tokens["input_ids"])
        said |= {"prompt_token_ids": [ids[~np.array(counted)].tolist()], "token_ids": [ids[counted].tolist()]}
    expected = whence.score(opened.trained, opened.factors, pd.DataFrame(said), tmp_path / "scores").matrix[0]
    near = 1e-5 * float(abs(expected).max())
    np.testing.assert_allclose(exact.table["score"], expected[exact.table["row"]], rtol=1e-5, atol=near)
    for number, shares in enumerate(exact.detail.tokens):
        assert shares.sum() == pytest.approx(exact.table["score"][number], rel=1e-4, abs=10 * near)
    assert estimated.detail is None
    assert set(estimated.table["row"]) == set(exact.table["row"])
    assert exact.table["example_id"].tolist() == [str(row) for row in exact.table["row"]]

    helpful, harmful = exact.best("helpful", 10), exact.best("harmful", 10)
    assert helpful["rank"].tolist() == list(range(1, len(helpful) + 1))
    assert (np.diff(helpful["score"]) <= 0).all()
    assert (np.diff(harmful["score"]) >= 0).all()
    assert (helpful["score"] > 0).all()
    assert (harmful["score"] <= 0).all()


def test_what_is_shown_is_exact_first_and_the_last_has_all(asked_run) -> None:
    asking = Asking(whence.load_run(asked_run))
    estimated = asking.first(asking.answer("The lens is", "valve"))
    [whole] = asking.exact(estimated)
    shown, last = asking.exact(estimated, shown=2)
    assert set(shown.table["row"]) == {*estimated.best("helpful", 2)["row"], *estimated.best("harmful", 2)["row"]}
    for found in (shown, last):
        scores = whole.table.set_index("row")["score"][found.table["row"]]
        np.testing.assert_allclose(found.table["score"], scores, rtol=1e-5)
        for number, shares in enumerate(found.detail.tokens):
            assert shares.sum() == pytest.approx(found.table["score"][number], rel=1e-3, abs=1e-6)
    assert last.table["row"].tolist() == whole.table["row"].tolist()
    assert list(last.table) == list(estimated.table)
    assert [found.table["rank"].max() for found in asking.exact(estimated, shown=100)] == [whole.table["rank"].max()]


def test_word_overlap_stands_beside(asked_run) -> None:
    asking = Asking(whence.load_run(asked_run))
    found = asking.first(asking.answer("The lens is", "valve"))
    documents = [f"The {thing} is {other}" for thing, other in zip(THINGS, THINGS[::-1], strict=True)]
    expected = bm25_scores(["The lens is valve"], documents)
    assert found.by_words["row"].tolist() == best_first(expected, len(found.by_words))[0].tolist()
    ranks = {row: place + 1 for place, row in enumerate(best_first(expected, len(THINGS))[0])}
    assert found.table["bm25_rank"].tolist() == [ranks[row] for row in found.table["row"]]


def test_an_answer_whose_influences_do_not_stand_out_says_so(asked_run) -> None:
    asking = Asking(whence.load_run(asked_run))
    *_, found = asking.exact(asking.first(asking.answer("The lens is")))
    assert found.stands_out == (found.table["z_score"].abs().max() > (2 * np.log(len(THINGS))) ** 0.5)
    assert ("No example stands out" in found.in_words) is not found.stands_out
    flat = found.table.assign(z_score=0.5)
    object.__setattr__(found, "table", flat)
    assert not found.stands_out
    assert "No example stands out: the strongest lies 0.5 standard deviations from the mean of 14" in found.in_words
    object.__setattr__(found, "table", flat.assign(z_score=[-9.0, *flat["z_score"][1:]]))
    assert found.stands_out


def test_a_text_goes_into_the_template_where_it_is_an_input(asked_run) -> None:
    asking = Asking(whence.load_run(asked_run))
    assert asking.answer("The lens", as_input=True).prompt == "The lens is"
    with pytest.raises(DataError, match="the question"):
        asking.answer(" ")
    with pytest.raises(DataError, match="the question"):
        asking.answer("The lens is", "")


def asked(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["ask", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_command_prints_the_answer_the_rows_and_how_far_to_believe_them(asked_run, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert asked("The lens is", "--run", asked_run, "--answer", "valve", "--rows", 2) == 0
    out = capsys.readouterr().out
    parts = ["Given answer", "valve", "Behind the answer", "Estimates by the index", "Most words shared", "BM25 rank"]
    for part in [*parts, "chance alone", "Evidence of the run: weak. Weak evidence."]:
        assert part in out
    assert asked("The lens is", "--run", asked_run, "--json", "--rows", 2) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["own_answer"] is True
    assert len(said["helpful"]) <= 2
    assert {"example_id", "prompt", "completion", "score", "z_score", "bm25_rank"} <= set(said["helpful"][0])
    assert said["evidence"] == {"grade": "weak", "sentence": "Weak evidence."}


def test_words_of_the_answer_are_explained_alone(asked_run, capsys) -> None:
    found = []
    for about in ((), ("--about", "loom"), ("--about", "boat")):
        code = asked("The lens is", "--run", asked_run, "--answer", "valve and loom", "--json", "--rows", 3, *about)
        said = capsys.readouterr()
        found.append(json.loads(said.out)["helpful"][0]["score"] if code == 0 else said.err)
    assert found[0] != found[1]
    assert "the answer has no words 'boat'" in found[2]


def test_a_run_without_an_index_says_how_to_have_one(asked_run, capsys) -> None:
    (asked_run / "artifacts" / "index" / "index" / "index.json").unlink()
    assert asked("The lens is", "--run", asked_run) == 1
    assert "index.enabled" in capsys.readouterr().err


def test_what_names_a_model_twice_or_settings_for_none_is_refused(asked_run, capsys) -> None:
    assert asked("Who?", "--champion", "--version", 2) == 1
    assert "not both" in capsys.readouterr().err
    assert asked("Who?", "--run", asked_run, "--profile", "demo") == 1
    assert "has its own settings" in capsys.readouterr().err
