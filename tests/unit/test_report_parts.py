"""The parts of the report: words for numbers, texts in tokens, charts, and what its views count."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import report_helpers
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, zscore

from whence.report import data, overview
from whence.report.answers import entries
from whence.report.charts import Line, line_chart
from whence.report.details import Details, TokenText
from whence.report.material import Material
from whence.report.tables import example_table, prompt_table, summary_text
from whence.report.words import differences, shortened, signed, standing


@pytest.fixture(scope="module")
def material() -> Material:
    return report_helpers.material()


@pytest.mark.parametrize(
    ("rank", "count", "words"),
    [
        (1, 16000, "the most helpful of 16,000"),
        (16, 16000, "among the top 0.1 % most helpful of 16,000"),
        (17, 16000, "among the top 0.5 % most helpful of 16,000"),
        (20, 1520, "among the top 2 % most helpful of 1,520"),
        (6, 12, "among the top 50 % most helpful of 12"),
        (7, 12, "number 7 of 12 by how helpful it is"),
    ],
)
def test_a_rank_is_said_in_words_that_are_true(rank: int, count: int, words: str) -> None:
    assert standing(rank, count, "helpful") == words


def test_words_that_the_other_answer_lacks_are_marked() -> None:
    base, own = differences("a red fox runs", "a blue fox runs, fast")
    assert [piece.text for piece in base if piece.differs] == ["red"]
    assert [piece.text.strip() for piece in own if piece.differs] == ["blue", ", fast"]


@given(st.text(max_size=30), st.text(max_size=30))
def test_marking_differences_loses_no_character(one: str, other: str) -> None:
    assert tuple("".join(piece.text for piece in side) for side in differences(one, other)) == (one, other)


@given(st.text(max_size=300), st.integers(10, 100))
def test_a_shortened_text_keeps_both_ends_and_says_how_much_is_gone(text: str, limit: int) -> None:
    short = shortened(text, limit)
    if len(text) <= limit:
        assert short == text
    else:
        assert short.startswith(text[: limit // 2])
        assert short.endswith(text[-(limit // 3) :])
        assert f"{len(text) - limit:,} characters" in short


def test_what_rounds_to_nothing_has_no_sign() -> None:
    assert [signed(value) for value in (-0.001, 0.0, 1.234, -1.236)] == ["0.00", "0.00", "+1.23", "−1.24"]


PIECES = st.lists(st.tuples(st.text(max_size=8), st.floats(-1e4, 1e4, width=32)), min_size=1, max_size=60)


@given(PIECES, st.integers(20, 400))
def test_the_parts_of_the_pieces_sum_to_the_score_however_a_text_is_cut(
    tokens: list[tuple[str, float]], limit: int
) -> None:
    scores = np.array([score for _, score in tokens])
    text = TokenText.of([piece for piece, _ in tokens], limit)
    parts = text.parts(scores)
    if parts:
        assert len(parts) == len(text.pieces)
        assert sum(parts) == pytest.approx(scores.sum(), abs=max(map(abs, parts)) * (len(parts) / 2000 + 1e-3))
    assert len("".join(text.pieces)) <= limit + max(len(piece) for piece, _ in tokens) * 2 + 40


def test_tokens_without_text_of_their_own_join_the_one_before() -> None:
    text = TokenText.of(["", "A", "😀", "", "", " b"], 100)
    assert text.pieces == ("", "A", "😀", " b")
    assert text.parts([0, 1, 2, 3, 4, -5]) == [0, 1, 9, -5]


@pytest.mark.parametrize("largest", [1e-30, 0.02, 1.0, 999.0, 1e7])
def test_parts_are_kept_to_a_two_thousandth_of_the_largest(largest: float) -> None:
    scores = largest * np.random.default_rng(0).uniform(-1, 1, 50)
    parts = np.array(TokenText.of(["x"] * 50, 100).parts(scores))
    assert np.abs(parts - scores).max() <= np.abs(scores).max() / 2000
    assert TokenText.of(["x"], 100).parts([0.0]) == []


def test_a_text_that_fits_is_shown_whole() -> None:
    assert "".join(TokenText.of(["", "one", " two"], 7).pieces) == "one two"


def test_a_chart_is_valid_and_says_what_it_shows() -> None:
    svg = line_chart("Loss <over> time", "step", "loss", [Line("a & b", [0, 10, 20], [3.0, float("nan"), 1.0])])
    root = ElementTree.fromstring(str(svg))
    assert root.get("aria-label") == "Loss <over> time"
    [line] = [element for element in root.iter() if element.tag.endswith("polyline")]
    points = [tuple(map(float, point.split(","))) for point in str(line.get("points")).split()]
    assert len(points) == 2, "a value that is no number is left out"
    assert points[0][0] < points[1][0]
    assert points[0][1] < points[1][1], "a falling line ends lower, and down is more"


def test_a_logarithmic_chart_leaves_out_zeros_and_a_chart_of_nothing_is_none() -> None:
    svg = str(line_chart("t", "x", "y", [Line("a", [1, 2, 3], [1.0, 0.0, 1e-9])], log_y=True))
    assert "10⁻⁸" in svg or "10⁻⁹" in svg
    assert line_chart("t", "x", "y", [Line("a", [], [])]) == ""


def test_a_scale_of_powers_puts_each_at_the_same_distance_and_points_need_no_line() -> None:
    svg = line_chart("t", "x", "y", [Line("a", [0, 1, 10, 100], [9, 1, 2, 3], marked=True, joined=False)], log_x=True)
    circles = [element for element in ElementTree.fromstring(str(svg)).iter() if element.tag.endswith("circle")]
    x = [float(str(circle.get("cx"))) for circle in circles]
    assert len(x) == 3, "zero has no place on it"
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])
    assert "polyline" not in str(svg)


def test_cards_carry_the_influences_of_their_query(material: Material) -> None:
    found = entries(material, Details(material.tokens, material.modules))
    first = found[0]
    wanted = material.influences.query("query_id == 'q0' and direction == 'helpful'")
    assert [material.examples[card.place].example_id for card in first.helpful] == wanted["example_id"].tolist()
    assert [card.score for card in first.helpful] == wanted["score"].tolist()
    assert first.helpful[0].place == int(np.argmax(material.scores[0]))
    assert first.harmful[0].place == int(np.argmin(material.scores[0]))
    assert (first.matches, found[-2].matches, found[-1].matches) == (True, False, None)
    assert found[-1].scored is None
    assert found[-1].helpful == []


def test_a_prompt_scored_twice_has_an_entry_for_each_of_its_answers(material: Material) -> None:
    own = material.queries.iloc[[0]].assign(query_id="q0/generated", source="generated", completion="its own")
    both = replace(
        material,
        queries=pd.concat([material.queries, own], ignore_index=True),
        scores=np.vstack([material.scores, material.scores[:1]]),
        influences=pd.concat(
            [material.influences, material.influences.query("query_id == 'q0'").assign(query_id="q0/generated")]
        ),
    )
    found = entries(both, Details(both.tokens, both.modules))
    assert [(entry.slug, entry.scored) for entry in found[:3]] == [
        ("q0", "reference"), ("q0-generated", "generated"), ("q1", "reference")
    ]  # fmt: skip
    assert len(found[1].helpful) == len(found[0].helpful) > 0


def test_influence_is_split_by_layer_and_by_type_of_module(material: Material) -> None:
    card = entries(material, Details(material.tokens, material.modules))[0].helpful[0]
    assert card.layers is not None
    assert card.kinds is not None
    assert card.layers == pytest.approx((0.5, 0.5))
    assert card.kinds == pytest.approx((0.75, 0.25))


def test_influence_is_split_by_the_turns_of_conversations_that_have_several(material: Material) -> None:
    first = material.influences.iloc[0]
    pair = {"query_id": first["query_id"], "example_id": first["example_id"]}
    turns = pd.DataFrame([pair | {"turn": 1, "score": 3.0}, pair | {"turn": 2, "score": -1.0}])
    details = Details(material.tokens, material.modules, turns)
    cards = [card for entry in entries(material, details) for card in entry.cards]
    assert [card.turns for card in cards if card.turns] == [(0.75, -0.25)]


def test_modules_outside_layers_have_a_place_of_their_own(material: Material) -> None:
    table = material.modules
    assert table is not None
    outside = table.assign(layer=table["layer"].mask(table["layer"] == 1))
    details = Details(material.tokens, outside)
    assert details.layers == ["layer 0", "outside layers"]


def test_the_overlap_with_bm25_is_counted_from_both_rankings(material: Material) -> None:
    overlap = material.word_overlap
    for row, entry in enumerate(entries(material, Details(material.tokens, material.modules))[:3]):
        count = len(entry.helpful)
        first = set(np.argsort(-overlap[row], kind="stable")[:count])
        assert entry.shared == len(first & set(np.argsort(-material.scores[row], kind="stable")[:count]))
        ranks = pd.Series(-material.scores[row]).rank().astype(int)
        assert all(near.influence_rank == ranks[near.place] for near in entry.neighbours)


def test_an_answer_that_shares_no_word_with_an_example_gives_it_no_rank() -> None:
    made = report_helpers.material(texts=["alpha", "beta", "gamma"])
    queries = made.queries.assign(prompt=["unheard", "of", "words"], completion=["x", "y", "z"])
    found = entries(replace(made, queries=queries), Details(made.tokens, made.modules))
    assert {card.overlap_rank for entry in found for card in entry.helpful} == {None}
    assert found[0].neighbours == []


def test_examples_are_often_helpful_by_the_lists_they_stand_in(material: Material) -> None:
    listed = material.influences.query("direction == 'helpful'")["example_id"].value_counts()
    found = data.often(material, "helpful")
    assert found["queries"].tolist() == sorted(listed, reverse=True)[: len(found)]
    assert found["queries"].tolist() == [listed[example_id] for example_id in found["example_id"]]


def test_suspects_are_those_with_the_highest_self_influence(material: Material) -> None:
    found = data.suspects(material, 3)
    assert list(zip(found["rank"], found["example_id"], found["self_influence"], strict=True)) == [
        (1, "train-011", 11.0), (2, "train-010", 10.0), (3, "train-009", 9.0)
    ]  # fmt: skip


def test_the_file_of_suspects_holds_no_formula() -> None:
    made = report_helpers.material(texts=['=HYPERLINK("http://x")', "+1", "@x", "-1", 'quote " and, comma\nline'])
    rows = list(csv.DictReader(io.StringIO(data.for_spreadsheets(data.suspects(made)))))
    assert len(rows) == 12
    assert not [row for row in rows if row["text"].startswith(("=", "+", "-", "@"))]
    assert any('quote " and, comma\nline' in row["text"] for row in rows)


def test_tables_for_spreadsheets_hold_no_formula_and_keep_their_numbers() -> None:
    text = data.for_spreadsheets(pd.DataFrame({"answer": ["=1+1", "fine", None], "z": [-1.5, 2.0, 0.0]}))
    assert text.splitlines() == ["answer,z", "'=1+1,-1.5", "fine,2.0", ",0.0"]


def test_the_flow_is_the_mean_z_score_of_a_class_on_the_answers_of_a_class(material: Material) -> None:
    flow = data.class_flow(material)
    assert flow is not None
    labels, answers = material.train.frame["label"].to_numpy(), material.queries["completion"].to_numpy()
    standard = zscore(material.scores.astype(np.float64), axis=1)
    for i, example_class in enumerate(flow.rows):
        for j, answer in enumerate(flow.columns):
            wanted = standard[answers == answer][:, labels == example_class].mean()
            assert flow.values[i, j] == pytest.approx(wanted, rel=1e-5)
    assert flow.rows == flow.columns, "classes stand in one order"
    assert sum(flow.row_sizes) == 12
    assert len(data.flow_table(flow)) == 9


def test_many_classes_are_cut_by_a_stated_rule() -> None:
    made = report_helpers.material(examples=40)
    frame = made.train.frame.assign(label=[f"class {number % 20}" for number in range(40)])
    flow = data.class_flow(replace(made, train=replace(made.train, frame=frame)))
    assert flow is not None
    assert len(flow.rows) == data.CLASSES_SHOWN
    assert flow.rows[-1] == "all others"
    assert sum(flow.row_sizes) == 40
    assert flow.notes == ["9 further classes of examples are in one, all others."]


def test_the_first_screen_says_which_rows_were_left_out_changed_or_shortened(material: Material) -> None:
    counted = {
        "source": "/data/a.jsonl, s3://b/c.jsonl",
        "dropped": {"not_sampled": 6600, "empty": 0},
        "changed": {"lowercased": 1200, "brought_to_NFC": 3},
        "truncated": 321,
    }
    info = material.train.info.model_copy(update=counted)
    made = replace(material, train=replace(material.train, info=info))
    facts = dict(overview.facts(made))
    counts = "6,600 not sampled, 1,200 lowercased, 3 brought to NFC, 321 shortened to 64 tokens"
    assert facts["Fine-tuned on"].endswith(f"examples of /data/a.jsonl, s3://b/c.jsonl ({counts})")
    assert overview.title(made) == "What builtin:tiny-llama learned from a.jsonl, s3://b/c.jsonl"


@pytest.mark.parametrize(("share", "count"), [(0.25, 12), (0.0, 8), (1.0, 36)])
def test_the_benchmark_s_intervals_are_wilson_s(material: Material, share: float, count: int) -> None:
    result = {"benchmark": "mmlu", "accuracy": share, "questions": count, "tasks": {}}
    [row] = overview.benchmark(replace(material, benchmark={"finetuned": result}))
    wanted = binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    assert row.base is None
    assert row.finetuned is not None
    assert (row.finetuned.low, row.finetuned.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_the_summary_says_grade_numbers_and_links(material: Material) -> None:
    text = summary_text(material)
    for words in ("**Weak.**", "not reached: Two fits agree", "70.0 % (25.0 to 75.0)", "(http://mlflow.test/#/run)"):
        assert words in text
    assert "Not measured." in summary_text(replace(material, evidence=None))


def test_text_of_data_is_no_markup_in_the_summary(material: Material) -> None:
    hostile = material.train.info.model_copy(update={"source": "[click](javascript:1) <b> | `x`\n# head"})
    text = summary_text(replace(material, train=replace(material.train, info=hostile)))
    assert "\\[click\\](javascript:1) \\<b\\> \\| \\`x\\` \\# head" in text


def test_tables_for_the_record_hold_a_row_per_answer_and_per_listed_example(material: Material) -> None:
    prompts, examples = prompt_table(material), example_table(material)
    assert prompts["query_id"].tolist() == ["q0", "q1", "q2", "unscored"]
    assert prompts["most_helpful"].tolist()[0] == material.influences["example_id"].iloc[0]
    assert examples["helpful_to"].sum() == (material.influences["direction"] == "helpful").sum()
    assert set(examples["example_id"]) == set(material.influences["example_id"])
