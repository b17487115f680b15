"""The report is one document that needs nothing else, says what it leaves out, and keeps text of data text."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
import report_helpers
from report_helpers import data_of

from whence.config_file import parse_config
from whence.report.base import asset, packed
from whence.report.material import Links
from whence.report.report import Report, report

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); //",
    "{{ 7 * 7 }} {% raw %}",
    "]]> \u2028 \u2029 \\u003cscript>",
    "a\u202eb\u2066c\u200fd",
    "שלום مرحبا 👩‍👩‍👧 😀",
    "broken \ud800 \udfff nul \x00",
    "word " * 20_000,
    "",
]


class Reader(HTMLParser):
    """The elements and the text that a browser would see, script and style apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made() -> Report:
    return report(report_helpers.material())


@pytest.fixture(scope="module")
def hostile() -> str:
    texts = [text or "empty" for text in HOSTILE]
    material = report_helpers.material(queries=12, texts=texts)
    # parquet refuses lone surrogates; they can come in lists and in JSON, not in ids
    names = [re.sub("[\ud800-\udfff]", "", f"{text[:60]} {number}") for number, text in enumerate(texts)]
    known = dict(zip(material.queries["query_id"], names, strict=True))
    frame = material.train.frame.assign(label=pd.Series(texts, dtype=object))
    renamed = {
        name: table.assign(**{column: pd.Series([known.get(v, v) for v in table[column]], dtype=object)})
        for name, column, table in (
            ("queries", "query_id", material.queries),
            ("influences", "query_id", material.influences),
            ("tokens", "query_id", material.tokens),
            ("modules", "query_id", material.modules),
            ("answers", "prompt_id", material.answers),
        )
    }
    return report(replace(material, train=replace(material.train, frame=frame), **renamed)).html


def test_nothing_in_the_data_becomes_markup(made: Report, hostile: str) -> None:
    plain, reader = Reader(made.html), Reader(hostile)
    own = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in reader.elements} <= own
    assert len(reader.all("script")) == len(plain.all("script")) == 2
    assert len(reader.all("img")) == len(plain.all("img")) == 1
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]


def test_texts_arrive_as_they_are_but_for_what_cannot_be_seen(hostile: str) -> None:
    texts = ["".join(example["pieces"]) for example in data_of(hostile)["examples"]]
    for text in HOSTILE[:6]:
        assert any(found.startswith(text) for found in texts), text
    assert any(found.startswith("a\ufffdb\ufffdc\u200fd") for found in texts)
    assert any(found.startswith("broken \ufffd \ufffd nul \ufffd") for found in texts)
    assert any("😀" in found for found in texts)
    hostile.encode("utf-8")
    assert "{{ 7 * 7 }}" in Reader(hostile).text


def test_a_row_of_100_kilobytes_is_shortened_and_the_page_says_so(hostile: str) -> None:
    assert max(len("".join(example["pieces"])) for example in data_of(hostile)["examples"]) < 4100
    assert "the middle is left out" in hostile
    assert re.search(r"\[… 9\d,\d{3} characters …\]", Reader(hostile).text)


def test_ids_are_unique_and_safe_in_an_address_whatever_the_prompts_are_called(hostile: str) -> None:
    ids = [str(attributes["id"]) for _, attributes in Reader(hostile).elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in ids)


def test_data_for_the_script_stays_inside_its_element_and_comes_back_whole() -> None:
    data = {"a": ["</script>", "<!--", "&", "\u2028", "\ud800", 1, None, True, 0.5], "b</script>": []}
    text = packed(data)
    assert re.fullmatch("[A-Za-z0-9+/=]*", text)
    assert text == packed(data), "the same bytes each time"
    assert data_of(f'<script type="application/gzip" id="report-data">{text}</script>') == data


def test_the_policy_lets_the_page_s_own_script_and_style_through_and_nothing_else(made: Report) -> None:
    reader = Reader(made.html)
    [policy] = [meta["content"] for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    for kind, tag in (("script-src", "<script>"), ("style-src", "<style>")):
        _, _, rest = made.html.partition(tag)
        content = rest.partition(tag.replace("<", "</"))[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    assert not [attributes for _, attributes in reader.elements if "style" in attributes]


def test_the_page_asks_the_network_for_nothing(made: Report) -> None:
    reader = Reader(made.html)
    loaded = [attributes["src"] for _, attributes in reader.elements if attributes.get("src")]
    assert all(str(source).startswith("data:image/png;base64,") for source in loaded)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in reader.elements}
    assert not re.search(r"url\(|@import", asset("report.css"))
    for script in ("cards.js", "report.js"):
        assert not re.search(r"fetch\(|XMLHttpRequest|import\(|innerHTML|eval\(", asset(script))


def test_the_first_screen_says_what_was_trained_measured_and_believed(made: Report) -> None:
    text = " ".join(Reader(made.html).text.split())
    for words in (
        "What builtin:tiny-llama learned from builtin:demo",
        "12 examples of builtin:demo",
        "Weak evidence",
        "Only the tail patch speaks for it.",
        "Reached: A step on the top examples helps.",
        "Not reached: Two fits agree.",
        "1 further threshold was not measured in this run",
        "70.0 % 25.0 to 75.0",
        "MMLU",
        "The run in MLflow",
        "The run in Kubeflow Pipelines",
    ):
        assert words in text, words


def test_every_question_can_be_opened_in_the_service_where_there_is_one(made: Report) -> None:
    served = parse_config(report_helpers.SETTINGS, {"serving.url": "https://ask.example.org/whence/"})
    texts = ["What is 1 + 1 & more? #2", "Größe: ½"]
    page = report(report_helpers.material(texts=texts, config=served)).html
    assert "Ask the model something new" in page
    links = [html.unescape(link) for link in re.findall(r'href="(https://ask\.example\.org/whence/#[^"]+)"', page)]
    asked = [{key: value for key, [value] in parse_qs(urlsplit(link).fragment).items()} for link in links]
    assert asked[0] == {"question": texts[0], "answer": "Physics"}
    assert asked[1] == {"question": texts[1], "answer": "Textiles"}
    assert asked[-1] == {"question": "Nobody knows this"}, "no answer was scored"
    assert "Ask this in the service" not in made.html


def test_without_a_script_the_answers_and_their_first_examples_can_be_read(made: Report) -> None:
    text = Reader(made.html).text
    assert "Prompt 1 about light and yarn." in text
    assert "The most helpful of 12" in text
    assert "Nobody knows this" in text


def test_what_was_not_measured_is_said_and_not_passed_over() -> None:
    bare = report_helpers.material(
        tokens=None, modules=None, self_influence=None, spectra=None, pictures={}, evidence=None, benchmark=None,
        history=[], links=Links(tracking="sqlite:///mlflow.db"),
    )  # fmt: skip
    text = " ".join(Reader(report(bare).html).text.split())
    for words in (
        "No evidence was given to this report",
        "Self-influence was not computed",
        "No loss was logged",
        "The spectra of the factors were not given",
        "no result was given to this report",
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ):
        assert words in text, words


def test_why_something_was_not_measured_is_said_where_it_is_known() -> None:
    reasons = {"evidence": "out of memory", "benchmark": "switched off: evaluation.mmlu.enabled is false"}
    text = Reader(report(report_helpers.material(evidence=None, benchmark=None, absent=reasons)).html).text
    assert "No evidence was given to this report (out of memory)" in text
    assert "MMLU: switched off: evaluation.mmlu.enabled is false." in text


def test_the_share_of_the_model_that_influence_is_over_is_said_with_the_experts_it_leaves_out(made: Report) -> None:
    words = "EKFAC over gate_proj, down_proj of all layers: 25.0 % of the model's parameters, 50.0 % of its MLPs'"
    assert words in Reader(made.html).text
    mixture = report_helpers.material()
    mixture = replace(mixture, origin=mixture.origin | {"coverage": report_helpers.COVERAGE | {"fused": ["a.b", "c"]}})
    assert f"{words}; not over the fused experts (a.b and 1 more)" in Reader(report(mixture).html).text


def test_how_an_answer_ended_and_what_was_shortened_or_changed_is_said() -> None:
    material = report_helpers.material()
    answers = material.answers.assign(finetuned_ended="cut off", base_ended="empty", shortened=True)
    asked = parse_config(material.config.to_yaml(), {"prompts.items": [{"input": "cafe\u0301", "reference": "x"}]})
    text = Reader(report(replace(material, answers=answers, config=asked)).html).text
    count = len(answers)
    assert f"{count} prompts (1 brought to NFC, {count} shortened, {count} answers cut off)" in text
    for words in ("Cut off after the most tokens it may have.", "It ended at once", "The models read it shortened"):
        assert text.count(words) == count
        assert words not in Reader(report(material).html).text


@pytest.mark.parametrize("word", ["strong", "moderate", "weak", "none", "not measured"])
def test_every_grade_has_its_words(word: str) -> None:
    html = report(report_helpers.material(evidence=report_helpers.evidence(word))).html
    wanted = {"none": "No evidence", "not measured": "Not measured"}.get(word, f"{word.capitalize()} evidence")
    assert f'<p class="word">{wanted}</p>' in html


def test_who_the_models_are_and_what_the_comparison_left_out_is_said(made: Report) -> None:
    measured = report_helpers.measured() | {
        "models": {"base": "champion", "finetuned": "candidate"},
        "notes": ["no prompt has a reference answer: ROUGE-L and chrF are left out"],
    }
    text = Reader(report(report_helpers.material(measured=measured)).html).text
    assert "Here base is champion and fine-tuned is candidate." in text
    assert "No prompt has a reference answer: ROUGE-L and chrF are left out." in text
    assert "Here base" not in made.html


def test_every_measure_of_both_models_has_a_value_and_a_whisker_as_long_as_its_interval(made: Report) -> None:
    whiskers = [attributes for attributes in Reader(made.html).all("line") if attributes["class"] == "whisker base"]
    assert len(whiskers) == 2 + 2, "two measures, the benchmark and its subject"
    ends = [float(str(whiskers[0][name])) for name in ("x1", "x2")]
    assert ends == pytest.approx([6 + 188 * 0.25, 6 + 188 * 0.75])
    assert "50.0 % 25.0 to 75.0" in " ".join(Reader(made.html).text.split())


def test_a_small_page_leaves_nothing_out(made: Report) -> None:
    assert made.left_out == []
    assert "leaves out" not in made.html


@pytest.mark.parametrize("largest", [300_000, 230_000, 150_000])
def test_a_page_that_would_be_too_large_shows_less_and_says_what_is_missing(largest: int) -> None:
    texts = [f"{number} " + "many words here " * 60 for number in range(30)]
    material = report_helpers.material(queries=12, examples=30, top_k=12, texts=texts)
    made = report(material, largest)
    assert len(made.html.encode("utf-8")) < largest
    assert made.left_out
    data = data_of(made.html)
    assert all(sentence in Reader(made.html).text for sentence in made.left_out)
    shown = max(len(entry["helpful"]) for entry in data["entries"])
    assert (shown < 12) == any("examples listed" in sentence for sentence in made.left_out)
    assert (len(data["entries"]) < 13) == any("answers the first" in sentence for sentence in made.left_out)
