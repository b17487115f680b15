"""The library without the pipeline: what docs/python.md shows runs, and its scores are those of explicit gradients."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from influence_reference import Reference, close
from transformers import LlamaConfig, LlamaForCausalLM

import whence
from whence.errors import DataError
from whence.estimates import Estimate
from whence.running.lineage import hand_on
from whence.validation.evidence import Evidence, Grade, Measure

ROOT = Path(__file__).parents[2]
BLOCKS, IN_README = (
    re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL) for file in ("docs/python.md", "README.md")
)
MODULES = [f"model.layers.0.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
THINGS = ["lens", "loom", "valve", "claim", "sensor", "bridge", "polymer", "boiler", "yarn", "light", "text", "class"]


def test_the_readme_shows_what_is_run_here():
    assert len(IN_README) == 1
    assert IN_README[0] in BLOCKS


@pytest.fixture
def model(tiny_tokenizer):
    """One layer of width 12 in double precision."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=12, intermediate_size=20, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture
def train():
    return pd.DataFrame({"prompt": [f"The {thing} is number" for thing in THINGS], "completion": THINGS[::-1]})


@pytest.fixture
def finished(model, tiny_tokenizer, train, make_config, tmp_path):
    """The folder of a run, as the stages leave it."""
    folder, config = tmp_path / "whence-output" / "latest", make_config({"general.dtype": "auto"})
    artifacts = folder / "artifacts"
    trained = whence.TrainedModel.of(model.float(), tiny_tokenizer, train, config)
    trained.text.write(artifacts / "prepare" / "train_data")
    hand_on(config, None, artifacts / "train" / "model")
    model.save_pretrained(artifacts / "train" / "model")
    tiny_tokenizer.save_pretrained(artifacts / "train" / "model")
    whence.fit_factors(trained, artifacts / "fit-factors" / "factors")
    queries = train.head(2).assign(query_id=["p0", "p1"])
    whence.score(trained, artifacts / "fit-factors" / "factors", queries, artifacts / "score" / "scores")
    found = Measure(name="planted_recall", title="", explanation="", higher_is_better=True,
                    methods={"influence": Estimate(value=1.0)})  # fmt: skip
    grade = Grade(word="weak", sentence="Weak evidence.", criteria=[])
    Evidence(grade=grade, measures=[found], not_measured=[]).write(
        artifacts / "validate" / "evidence" / "evidence.json"
    )
    return folder


def test_a_run_is_read_as_the_page_shows(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parents[1])
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    run = names["run"]
    printed = capsys.readouterr().out
    assert "Weak evidence." in printed
    assert run.scores.matrix.shape == (2, len(THINGS))
    assert run.trained.examples.lengths == run.trained.tokenize(run.trained.frame).lengths
    again = whence.score(run.trained, run.factors, run.scores.queries, "new-scores")
    close(torch.tensor(again.matrix), torch.tensor(run.scores.matrix))
    with pytest.raises(DataError, match="no query 'p9'"):
        run.scores.rank("p9")
    with pytest.raises(DataError, match="finished run"):
        whence.load_run("elsewhere")


def test_ones_own_model_is_scored_as_the_page_shows(model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.float().save_pretrained("my-model")
    tiny_tokenizer.save_pretrained("my-model")
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    ranked = names["scores"].rank("sky")
    assert ranked["example_id"].tolist()[:1] == ["0"], "the example that says it"
    assert not (tmp_path / "scores" / "work").exists(), "only the result is left"


def test_scores_and_their_detail_are_those_of_explicit_gradients(model, tiny_tokenizer, train, tmp_path):
    config = whence.own_config({"general.max_length": 64, "factors.use_empirical_fisher": True, "scores.top_k": 12})
    trained = whence.TrainedModel.of(model, tiny_tokenizer, train, config)
    whence.fit_factors(trained, tmp_path / "factors")
    scores = whence.score(trained, tmp_path / "factors", train.head(3), tmp_path / "scores")
    reference = Reference(model, MODULES)
    inverse, known = reference.inverse_ekfac(trained.examples, None), reference.gradients(trained.examples)
    expected = torch.tensor(
        [[sum((inverse(q, name, None) * z[name]).sum() for name in MODULES) for z in known] for q in known[:3]]
    )
    close(torch.tensor(scores.matrix), expected)
    own = [sum((inverse(z, name, None) * z[name]).sum() for name in MODULES) for z in known]
    close(torch.tensor(scores.self_influence), torch.tensor(own))
    first = scores.rank("0", top_k=1).iloc[0]
    assert first["score"] == pytest.approx(float(expected[0].max()), rel=1e-3)
    detail = scores.detail("0", first["example_id"])
    assert detail.tokens["score"].sum() == pytest.approx(first["score"], rel=1e-3)
    assert detail.modules["score"].sum() == pytest.approx(first["score"], rel=1e-3)
    assert "".join(detail.tokens["piece"]) == f"{train['prompt'][0]} {train['completion'][0]}"


def test_the_package_is_imported_without_anything_heavy():
    code = "import sys, whence; dir(whence); print([m for m in ('torch', 'pandas', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    for name in whence.__all__:
        assert getattr(whence, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'scor'"):
        _ = whence.scor
