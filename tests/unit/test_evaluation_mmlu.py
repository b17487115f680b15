"""The benchmark against stock DeepEval on one subject, and against a loop that knows neither batches nor cache."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whence.config import BUILTIN_DEMO
from whence.config_file import load_config
from whence.data.preparation import prepare_datasets
from whence.errors import ConfigError, DataError
from whence.evaluation import mmlu, questions
from whence.evaluation.mmlu import evaluate_mmlu, first_letter
from whence.evaluation.questions import benchmark_name, check_questions, read_questions
from whence.models.builtin import tiny_llama, train_tokenizer
from whence.models.language import LanguageModel
from whence.running.checks import check_benchmark

TASKS = ["international_law", "virology"]
CHOICES = ["yes", "no", "valve"]


@pytest.fixture
def folder(tmp_path):
    """Two subjects of eight questions of unlike lengths and five solved examples each."""
    for task in TASKS:
        for split, count in (("dev", 5), ("test", 8)):
            rows = [
                [
                    f"{task} {split} {n}: {'what bends light, ' * (n * 3 % 5)}a lens?",
                    *CHOICES,
                    f"{n}",
                    "ABCD"[n * 7 % 4],
                ]
                for n in range(count)
            ]
            with (tmp_path / f"{task}_{split}.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows(rows)
    return tmp_path


@pytest.fixture
def settings(folder, make_config):
    def make(**overrides):
        values = {"source": str(folder), "tasks": TASKS, "n_shots": 2} | overrides
        dotted = {f"evaluation.mmlu.{key}": value for key, value in values.items() if "." not in key}
        dotted |= {key: value for key, value in values.items() if "." in key}
        return make_config({"evaluation.batch_size": 3, "general.max_length": 400} | dotted)

    return make


def format_question(row, answered):
    text, *choices, letter = row
    lines = [text, *(f"{name}. {choice}" for name, choice in zip("ABCD", choices, strict=True)), "Answer:"]
    return "\n".join(lines) + (f" {letter}\n\n" if answered else "")


def prompts_of(folder, task, shots):
    """Prompt and right letter of each question, written from the files alone."""
    read = {split: list(csv.reader((folder / f"{task}_{split}.csv").open())) for split in ("dev", "test")}
    head = f"The following are multiple choice questions (with answers) about {task.replace('_', ' ')}.\n\n"
    head += "".join(format_question(row, True) for row in read["dev"][:shots])
    return [(head + format_question(row, False), row[-1]) for row in read["test"]]


def letter_alone(model, tokenizer, prompt):
    """The most probable letter: one prompt, no batch, no cache."""
    ids = tokenizer(prompt)["input_ids"]
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in "ABCD"]
    scores = []
    for letter in letters:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + letter]), use_cache=False).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[len(ids) - 1 + step, token]) for step, token in enumerate(letter)))
    return "ABCD"[scores.index(max(scores))], scores


def test_letters_and_accuracy_are_those_of_an_independent_loop(tiny_model, tiny_tokenizer, settings, folder):
    result = evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, settings()), "finetuned")
    expected = [
        (task, number, *letter_alone(tiny_model, tiny_tokenizer, prompt), right)
        for task in TASKS
        for number, (prompt, right) in enumerate(prompts_of(folder, task, 2), start=1)
    ]
    assert len({letter for _, _, letter, _, _ in expected}) > 1
    for row, (task, number, letter, scores, right) in zip(result.predictions.itertuples(), expected, strict=True):
        assert (row.task, row.number, row.prediction, row.expected) == (task, number, letter, right)
        assert row.correct == (letter == right)
        assert [row.logprob_A, row.logprob_B, row.logprob_C, row.logprob_D] == pytest.approx(scores, abs=1e-3)
    accuracy = sum(letter == right for _, _, letter, _, right in expected) / len(expected)
    assert result.summary["accuracy"] == result.metrics["mmlu.finetuned.accuracy"] == pytest.approx(accuracy)
    assert result.summary["questions"] == 16
    for task in TASKS:
        share = sum(letter == right for name, _, letter, _, right in expected if name == task) / 8
        assert result.summary["tasks"][task] == {"accuracy": pytest.approx(share), "questions": 8}
    assert json.loads(json.dumps(result.summary)) == result.summary


def test_a_single_subject_scores_as_in_stock_deepeval(tiny_model, tiny_tokenizer, settings, folder, monkeypatch):
    config = settings(tasks=["virology"])
    ours = evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, config), "base")
    rows = {split: read_questions(str(folder), "virology", split) for split in ("dev", "test")}
    monkeypatch.setattr("datasets.load_dataset", lambda name, task: rows)
    stock = mmlu.MMLU(tasks=[mmlu.Subject("virology")], n_shots=2)
    stock.evaluate(mmlu.Answerer(LanguageModel(tiny_model, tiny_tokenizer, config), "base"))
    assert stock.predictions["Prediction"].tolist() == ours.predictions["prediction"].tolist()
    assert stock.overall_score == pytest.approx(ours.summary["accuracy"])


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_each_subject_is_shown_its_own_solved_examples(
    tiny_model, tiny_tokenizer, settings, folder, monkeypatch, source
):
    seen = []
    real = mmlu.Answerer.batch_generate
    monkeypatch.setattr(mmlu.Answerer, "batch_generate", lambda self, p, s=None: seen.extend(p) or real(self, p, s))
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda name, task: {split: read_questions(str(folder), task, split) for split in ("dev", "test")},
    )
    config = settings(**({"source": "hub"} if source == "hub" else {}))
    evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, config), "finetuned")
    assert sorted(seen) == sorted(prompt for task in TASKS for prompt, _ in prompts_of(folder, task, 2))


def test_prompts_that_are_too_long_lose_the_first_solved_examples_and_are_counted(
    tiny_model, tiny_tokenizer, settings, folder
):
    lengths = {
        shots: [len(tiny_tokenizer(prompt)["input_ids"]) for prompt, _ in prompts_of(folder, "virology", shots)]
        for shots in range(3)
    }
    limit = sorted(lengths[2])[4] + 1  # room for two solved examples before five of the eight questions
    config = settings(tasks=["virology"], **{"general.max_length": limit})
    result = evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, config), "finetuned")
    fitting = [sum(length + 1 <= limit for length in lengths[2])]
    assert (result.predictions["shots"] == 2).sum() == fitting[0] < 8
    assert result.summary["with_fewer_shots"] == 8 - fitting[0]
    assert result.summary["shortened"] == 0
    # of two solved examples the second stays
    benchmark = mmlu.SubjectBenchmark(config)
    longest = benchmark.load_benchmark_dataset(mmlu.Subject("virology"))[0]
    prompt, count = benchmark._prompt(
        mmlu.Answerer(LanguageModel(tiny_model, tiny_tokenizer, config), "x"), mmlu.Subject("virology"), longest
    )
    assert count == 1
    assert "virology dev 1:" in prompt
    assert "virology dev 0:" not in prompt


def test_a_question_longer_than_the_model_reads_loses_its_beginning(tiny_model, tiny_tokenizer, settings, folder):
    config = settings(tasks=["virology"], **{"general.max_length": 24})
    result = evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, config), "finetuned")
    assert result.summary["shortened"] == 8
    prompt, _ = prompts_of(folder, "virology", 0)[0]
    ids = tiny_tokenizer(prompt)["input_ids"]
    letters = [tiny_tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
    with torch.no_grad():
        logits = tiny_model(input_ids=torch.tensor([[ids[0], *ids[-22:]]])).logits[0, -1]
    assert result.predictions["prediction"][0] == "ABCD"[int(logits[letters].argmax())]


def test_generated_answers_count_by_their_first_letter(tiny_model, tiny_tokenizer, settings, monkeypatch):
    texts = iter(["B", "(B) no", "", "because", "B. no", " C", "Bridge", "A"])
    monkeypatch.setattr(type(tiny_tokenizer), "decode", lambda *_, **__: next(texts))
    config = settings(tasks=["virology"], method="generate")
    result = evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, config), "finetuned")
    assert sorted(result.predictions["prediction"]) == ["", "", "", "A", "B", "B", "B", "C"]
    assert result.summary["unanswered"] == 3
    assert result.summary["method"] == "generate"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), (" (C) since", "C"), ("D.", "D"), ("Apple", ""), ("the answer is A", ""), ("", ""), ("E", "")],
)
def test_the_letter_an_answer_begins_with_is_read(answer, letter):
    assert first_letter(answer) == letter


def test_the_projects_own_questions_never_go_by_mmlus_name(tiny_model, tiny_tokenizer, make_config, capsys):
    config = make_config(
        {
            "evaluation.mmlu.source": BUILTIN_DEMO,
            "evaluation.mmlu.tasks": ["patent_sections", "reading_claims", "everyday_law"],
            "general.max_length": 256,
        }
    )
    result = evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, config), "base")
    assert result.summary["benchmark"] == "demo_questions"
    assert result.summary["questions"] == 36
    assert set(result.metrics) == {
        f"demo_questions.base.{name}" for name in ("accuracy", "patent_sections", "reading_claims", "everyday_law")
    }
    assert "MMLU" not in capsys.readouterr().out


def test_only_mmlus_subjects_make_a_result_mmlus(settings):
    assert benchmark_name(settings().evaluation.mmlu) == "mmlu"
    assert benchmark_name(settings(tasks=["virology", "house_rules"]).evaluation.mmlu) == "questions"


def test_the_built_in_questions_are_balanced_and_distinct():
    for task in ("patent_sections", "reading_claims", "everyday_law"):
        test, dev = read_questions(BUILTIN_DEMO, task, "test"), read_questions(BUILTIN_DEMO, task, "dev")
        assert (len(test), len(dev)) == (12, 5)
        assert [sum(question["answer"] == letter for question in test) for letter in range(4)] == [3, 3, 3, 3]
        assert len({question["question"] for question in test + dev}) == 17
        assert all(len(set(question["choices"])) == 4 for question in test + dev)


def test_every_built_in_question_fits_into_the_demo_whole():
    config = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")
    corpus = prepare_datasets(config, train_tokenizer)[0].frame
    tokenizer = train_tokenizer((corpus["prompt"] + " " + corpus["completion"]).tolist())
    result = evaluate_mmlu(
        LanguageModel(tiny_llama(len(tokenizer), config.general.max_length, 0), tokenizer, config), "base"
    )
    assert result.summary["questions"] == 36
    assert result.summary["shortened"] == 0


def test_the_subjects_of_mmlu_are_deepevals():
    from deepeval.benchmarks.mmlu.task import MMLUTask

    assert {task.value for task in MMLUTask} == questions.SUBJECTS


def test_a_misspelt_subject_is_named_with_the_nearest_one(settings):
    with pytest.raises(ConfigError, match=r"no subject 'virolgy'; did you mean virology\?"):
        check_questions(settings(tasks=["virolgy"]).evaluation.mmlu)
    with pytest.raises(ConfigError, match=r"hub has no subject 'busines_ethics'; did you mean business_ethics\?"):
        check_questions(settings(source="hub", tasks=["busines_ethics"]).evaluation.mmlu)


def test_a_source_that_is_no_folder_is_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.mmlu\.source: .*absent is no folder"):
        check_questions(settings(source=str(tmp_path / "absent")).evaluation.mmlu)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only,five,columns,here,A", r"virology_test\.csv, row 9: 5 columns"),
        ("q,a,b,c,d,E", r"virology_test\.csv, row 9: the answer is 'E'"),
    ],
)
def test_a_row_that_is_no_question_is_named(settings, folder, line, message):
    with (folder / "virology_test.csv").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=message):
        check_questions(settings().evaluation.mmlu)


def test_a_byte_order_mark_and_blank_lines_are_no_part_of_the_questions(settings, folder):
    asked = settings().evaluation.mmlu
    plain = read_questions(asked.source, "virology", "test")
    file = folder / "virology_test.csv"
    file.write_text("\ufeff" + file.read_text().replace("\n", "\n\n") + "\n\n")
    check_questions(asked)
    assert read_questions(asked.source, "virology", "test") == plain


def test_config_check_reads_the_question_files_that_are_needed(settings, folder):
    check_benchmark(settings())
    (folder / "virology_dev.csv").unlink()
    check_benchmark(settings(n_shots=0))
    with pytest.raises(DataError, match=r"cannot read the questions .*virology_dev\.csv"):
        check_benchmark(settings())
    check_benchmark(settings(enabled=False))


def test_too_few_solved_examples_and_empty_files_are_named(settings, folder):
    (folder / "virology_dev.csv").write_text("q,a,b,c,d,A\n")
    with pytest.raises(
        DataError, match=r"virology_dev\.csv has 1 solved examples, evaluation\.mmlu\.n_shots asks for 2"
    ):
        check_questions(settings().evaluation.mmlu)
    (folder / "virology_test.csv").write_text("")
    with pytest.raises(DataError, match=r"virology_test\.csv is empty"):
        check_questions(settings().evaluation.mmlu)


def test_a_hub_that_cannot_be_reached_is_explained(tiny_model, tiny_tokenizer, settings, monkeypatch):
    def refuse(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match=r"cais/mmlu.*no route.*evaluation\.mmlu\.source"):
        evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, settings(source="hub")), "finetuned")


def test_nothing_is_sent_anywhere(tiny_model, tiny_tokenizer, settings, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    evaluate_mmlu(LanguageModel(tiny_model, tiny_tokenizer, settings(max_questions=2)), "finetuned")


def test_importing_the_benchmark_leaves_no_files_and_turns_telemetry_off(tmp_path):
    (tmp_path / ".env").write_text("OPENAI_API_KEY=from-dotenv\n")
    code = (
        "import os, whence.evaluation.mmlu; from deepeval.telemetry import telemetry_opt_out; "
        "print(telemetry_opt_out(), os.environ.get('OPENAI_API_KEY'))"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(home), "DEEPEVAL_TELEMETRY_OPT_OUT": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "None"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env", "home"]
    assert not list(home.glob("**/*deepeval*"))
