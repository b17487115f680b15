"""A small run made up by hand, as the report's tests read it: no model, no factors, every part in its real shape."""

from __future__ import annotations

import base64
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from data_helpers import example_set
from matplotlib.figure import Figure

from whence.config import Config
from whence.config_file import parse_config
from whence.data.dataset import ExampleSet
from whence.estimates import Estimate
from whence.files import write_atomically, write_json
from whence.report.material import Links, Material
from whence.validation.evidence import Criterion, Evidence, Grade, Measure, NotMeasured

SETTINGS = """
profile: test
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: ["A lens bends light.", "A loom weaves yarn.", "Who?"]}
"""
CLASSES = ("Physics", "Textiles", "Chemistry")
LAYERS, KINDS = (0, 1), ("gate_proj", "down_proj")
COVERAGE = {"kinds": [*KINDS], "tracked": 30, "parameters": 120, "tracked_mlp": 30, "mlp_parameters": 60, "fused": []}


def config() -> Config:
    return parse_config(SETTINGS)


def material(
    queries: int = 3, examples: int = 12, top_k: int = 4, texts: list[str] | None = None, seed: int = 0, **changes: Any
) -> Material:
    """A run of ``queries`` prompts and ``examples`` training examples; a further prompt, ``unscored``, has no scores.

    Args:
        texts: of the training examples and, as far as they reach, of the prompts and answers.
        changes: fields of the material in place of those made here.
    """
    rng = np.random.default_rng(seed)
    train = train_set(examples, texts)
    names = [f"q{number}" for number in range(queries)]
    said = texts or [f"Prompt {number} about light and yarn." for number in range(queries)]
    frame = pd.DataFrame(
        {
            "query_id": names,
            "prompt": [said[number % len(said)] for number in range(queries)],
            "completion": [CLASSES[number % len(CLASSES)] for number in range(queries)],
            "source": "reference",
        },
        dtype=object,
    )
    scores = rng.normal(size=(queries, examples)).astype(np.float32) * 100
    influences = listed(scores, frame, train.frame, top_k)
    answers = pd.DataFrame(
        {
            "prompt_id": [*names, "unscored"],
            "prompt": [*frame["prompt"], "Nobody knows this"],
            "reference": [*frame["completion"], None],
            "base_answer": [texts[0] if texts else "a b c d"] * (queries + 1),
            "finetuned_answer": [*frame["completion"][:-1], "something else", "an answer"],
        },
        dtype=object,
    ).assign(base_mean_logprob=-0.1, finetuned_mean_logprob=-0.1, base_ended="end of text",
             finetuned_ended="end of text", shortened=False)  # fmt: skip
    made = Material(
        config=config(),
        train=train,
        history=[
            {"step": 10.0, "loss": 2.5, "learning_rate": 1e-3},
            {"step": 20.0, "loss": 1.0},
            {"step": 20.0, "eval_loss": 1.2},
        ],
        measured=measured(),
        answers=answers,
        queries=frame,
        scores=scores,
        influences=influences,
        origin={
            "model": "m" * 64,
            "train_data": train.info.fingerprint,
            "factors": "f" * 64,
            "versions": {"x": "1"},
            "coverage": COVERAGE,
        },
        tokens=tokens(influences, train.frame, rng),
        modules=modules(influences),
        self_influence=np.arange(examples, dtype=np.float32),
        spectra=spectra(),
        pictures={"all_layers": png()},
        evidence=evidence(),
        benchmark={
            model: {
                "benchmark": "mmlu",
                "accuracy": 0.5,
                "questions": 8,
                "tasks": {"a_b": {"accuracy": 0.5, "questions": 8}},
            }
            for model in ("base", "finetuned")
        },
        links=Links("http://mlflow.test/#/run", "http://kubeflow.test/#/run", "sqlite:///mlflow.db", "abc"),
    )
    return replace(made, **changes)


def train_set(examples: int, texts: list[str] | None) -> ExampleSet:
    given = texts or [f"Example {number} about light and yarn." for number in range(examples)]
    frame = pd.DataFrame(
        {
            "example_id": [f"train-{number:03d}" for number in range(examples)],
            "prompt": [given[number % len(given)] for number in range(examples)],
            "completion": [CLASSES[number % len(CLASSES)] for number in range(examples)],
            "label": [CLASSES[number % len(CLASSES)] for number in range(examples)],
            "source_id": [str(number) for number in range(examples)],
            "source": ["<b>crawl</b>" if number % 3 else "books" for number in range(examples)],
        },
        dtype=object,  # what pandas keeps as text cannot hold every string that JSON can
    )
    return example_set(frame, source="builtin:demo")


def listed(scores: np.ndarray, queries: pd.DataFrame, train: pd.DataFrame, top_k: int) -> pd.DataFrame:
    """As ``influences.parquet``."""
    rows = []
    for query_id, row in zip(queries["query_id"], scores.astype(np.float64), strict=True):
        for direction, sign in (("helpful", 1), ("harmful", -1)):
            order = [place for place in np.argsort(-sign * row, kind="stable")[:top_k] if sign * row[place] > 0]
            rows += [
                {
                    "query_id": query_id,
                    "direction": direction,
                    "rank": rank,
                    "example_id": train["example_id"].iloc[place],
                    "score": row[place],
                    "z_score": (row[place] - row.mean()) / row.std(),
                }
                for rank, place in enumerate(order, 1)
            ]
    return pd.DataFrame(rows)


def tokens(influences: pd.DataFrame, train: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """As ``tokens.parquet``: words and spaces as pieces, special tokens around them, shares that sum to the score."""
    pieces = {
        example_id: ["", *(f" {word}" if at else word for at, word in enumerate(prompt.split(" "))), f" {answer}", ""]
        for example_id, prompt, answer in zip(train["example_id"], train["prompt"], train["completion"], strict=True)
    }
    rows = []
    for row in influences.itertuples():
        shares = rng.normal(size=len(pieces[row.example_id]))
        shares += (row.score - shares.sum()) / len(shares)
        rows.append((row.query_id, row.example_id, pieces[row.example_id], shares.astype(np.float32)))
    return pd.DataFrame(rows, columns=["query_id", "example_id", "pieces", "scores"])


def modules(influences: pd.DataFrame) -> pd.DataFrame:
    """As ``modules.parquet``: half of every score in each layer, three quarters of that in ``gate_proj``."""
    rows = [
        (row.query_id, row.example_id, layer, kind, row.score / 2 * share)
        for row in influences.itertuples()
        for layer in LAYERS
        for kind, share in zip(KINDS, (0.75, 0.25), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["query_id", "example_id", "layer", "module", "score"])
    return table.astype({"layer": "Int64"})


def spectra() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "module": f"model.layers.{layer}.mlp.{kind}",
                "layer": layer,
                "kind": kind,
                "size": 100,
                "ranks": [1, 10, 100],
                "values": [1.0, 1e-3, 1e-9],
                "effective_rank": 3.5,
                "top_1_percent_share": 0.9,
                "condition_number": float("inf"),
            }
            for layer in LAYERS
            for kind in KINDS
        ]
    )


def measured() -> dict[str, Any]:
    interval = {"value": 0.5, "low": 0.25, "high": 0.75}
    both = {
        "base": interval,
        "finetuned": interval | {"value": 0.7},
        "difference": interval | {"low": -0.1, "value": 0.2},
    }
    return {
        "models": {"base": "base", "finetuned": "finetuned"},
        "notes": [],
        "eval_rows": 40,
        "prompts": 3,
        "prompts_with_reference": 3,
        "confidence": 0.95,
        "metrics": {"accuracy": {"over": "evaluation rows", **both}, "rouge_l": {"over": "prompts", **both}},
    }


def evidence(word: Any = "weak") -> Evidence:
    return Evidence(
        grade=Grade(
            word=word,
            sentence="Only the tail patch speaks for it.",
            criteria=[
                Criterion(measure="tail_patch", sentence="A step on the top examples helps.", passed=True),
                Criterion(measure="stability", sentence="Two fits agree.", passed=False),
                Criterion(measure="lds", sentence="The LDS is above 0.2.", passed=None),
            ],
        ),
        measures=[
            Measure(
                name="tail_patch",
                title="Tail patch",
                explanation="Change of the log-probability.",
                higher_is_better=True,
                methods={
                    "influence": Estimate(value=0.25, low=0.125, high=0.375, items=3),
                    "bm25": Estimate(value=0.5),
                },
            )
        ],
        not_measured=[NotMeasured(name="lds", why="It takes many trainings.")],
    )


def png() -> bytes:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def data_of(html: str) -> Any:
    """What the page's script reads."""
    _, _, rest = html.partition('<script type="application/gzip" id="report-data">')
    return json.loads(gzip.decompress(base64.b64decode(rest.partition("</script>")[0], validate=True)))


def write(made: Material, folder: Path) -> dict[str, Path]:
    """The inputs of the stage as the other stages leave them."""
    from safetensors.numpy import save_file

    paths = {name: folder / name for name in ("scores", "comparison", "spectra", "evidence", "benchmark")}
    for path in paths.values():
        write_atomically(path / "lineage" / "config.yaml", made.config.to_yaml())
    write_json(paths["scores"] / "lineage" / "training.json", {"history": list(made.history)})
    write_json(paths["comparison"] / "models.json", {role: {"id": role} for role in ("base", "finetuned")})
    made.train.write(paths["scores"] / "train_data")
    save_file({"all_modules": made.scores}, paths["scores"] / "scores.safetensors")
    (paths["scores"] / "scores.json").write_text(json.dumps(made.origin))
    made.queries.to_parquet(paths["scores"] / "queries.parquet")
    made.influences.to_parquet(paths["scores"] / "influences.parquet")
    for name in ("tokens", "modules", "turns"):
        table = getattr(made, name)
        if table is not None:
            table.to_parquet(paths["scores"] / f"{name}.parquet")
    pd.DataFrame({"example_id": made.train.frame["example_id"], "self_influence": made.self_influence}).to_parquet(
        paths["scores"] / "self_influence.parquet"
    )
    (paths["comparison"] / "comparison.json").write_text(json.dumps(made.measured))
    made.answers.to_parquet(paths["comparison"] / "comparison.parquet")
    made.spectra.to_parquet(paths["spectra"] / "spectra.parquet")
    (paths["spectra"] / "all_layers.png").write_bytes(made.pictures["all_layers"])
    made.evidence.write(paths["evidence"] / "evidence.json")
    (paths["benchmark"] / "mmlu.json").write_text(json.dumps(made.benchmark))
    return paths
