"""What must hold on a CUDA device; needs one, and no more packages than torch, kronfluence and faiss (make gpu).

The same work on a CPU is the reference: fp32 on both sides, without TF32, so that differences are those of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import whence  # noqa: E402
from whence.data.tokenization import TokenizedExamples  # noqa: E402
from whence.evaluation.generation import stream_answer  # noqa: E402
from whence.influence import memory  # noqa: E402
from whence.influence.explain import Explainer  # noqa: E402
from whence.influence.index import Index  # noqa: E402
from whence.models.builtin import tiny_llama, train_tokenizer  # noqa: E402
from whence.models.language import LanguageModel  # noqa: E402
from whence.models.loading import load_model  # noqa: E402
from whence.models.trained import TrainedModel, own_config  # noqa: E402
from whence.training import TrainingResult, train  # noqa: E402

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "dark"}
PLACES = "sea hill town wood lake road".split()
ROWS = pd.DataFrame(
    [{"prompt": f"By the {place} the {thing} is", "completion": colour}
     for place in PLACES for thing, colour in COLOURS.items()]
)  # fmt: skip
QUERIES = pd.DataFrame([{"query_id": thing, "prompt": f"By the sea the {thing} is", "completion": colour}
                        for thing, colour in COLOURS.items()])  # fmt: skip
TOKENIZER = train_tokenizer([f"{row.prompt} {row.completion}" for row in ROWS.itertuples()], vocabulary=300)
ON_CPU, ON_GPU = {"general.device": "cpu"}, {"general.device": "cuda"}
FP32 = {"general.dtype": "float32"}
BILLION = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 1024}  # fmt: skip


def config_of(**settings: Any) -> Any:
    """Settings by dotted key, dots written as double underscores."""
    own = {"general.max_length": 64, "generation.max_new_tokens": 8, "factors.use_empirical_fisher": True,
           "index.dimensions": 4096, "training.dataloader_num_workers": 0}  # fmt: skip
    return own_config(own | {name.replace("__", "."): value for name, value in settings.items()})


def learn(folder: Path, **settings: Any) -> TrainingResult:
    config = config_of(
        general__device="cuda", training__num_train_epochs=40, training__per_device_train_batch_size=4,
        training__learning_rate=2e-3, training__save_steps=40, **settings,
    )  # fmt: skip
    model = tiny_llama(len(TOKENIZER), 64, seed=0).to("cuda")
    examples = TokenizedExamples.from_frame(ROWS, TOKENIZER, config)
    return train(
        LanguageModel(model, TOKENIZER, config), examples, examples.subset(range(4)),
        output=folder / "model", checkpoints=folder / "checkpoints", on_log=lambda step, metrics: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    folder = tmp_path_factory.mktemp("learned")
    return folder, learn(folder)


def attributed(model: Path, folder: Path, **settings: Any) -> tuple[TrainedModel, Any]:
    """The model with its rows, and the scores of the queries; factors and index stand in ``folder``."""
    config = config_of(**settings)
    language = load_model(model, config)
    trained = TrainedModel.of(language.model, language.tokenizer, ROWS, config)
    whence.fit_factors(trained, folder / "factors")
    scores = whence.score(trained, folder / "factors", QUERIES, folder / "scores")
    whence.make_index(trained, folder / "factors", folder / "index")
    return trained, scores


@pytest.fixture(scope="module")
def on_gpu(learned: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedModel, Any]:
    folder = tmp_path_factory.mktemp("gpu")
    return folder, *attributed(learned[0] / "model", folder, general__device="cuda", general__dtype="float32")


@pytest.fixture(scope="module")
def on_cpu(learned: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedModel, Any]:
    folder = tmp_path_factory.mktemp("cpu")
    return folder, *attributed(learned[0] / "model", folder, general__device="cpu", general__dtype="float32")


def test_training_in_bfloat16_learns(learned: tuple[Path, TrainingResult]) -> None:
    _, result = learned
    assert result.metrics["final_eval_loss"] < 0.1 < result.history[0]["eval_loss"]


def test_the_learned_answers_come_piece_by_piece(learned: tuple[Path, Any]) -> None:
    language = load_model(learned[0] / "model", config_of(general__device="cuda"))
    assert language.model.dtype == torch.bfloat16
    for thing, colour in COLOURS.items():
        *_, last = stream_answer(language, f"By the hill the {thing} is")
        assert last.text == colour


def test_scores_are_those_of_a_cpu(on_gpu: tuple[Path, Any, Any], on_cpu: tuple[Path, Any, Any]) -> None:
    for name in ("matrix", "self_influence"):
        found, expected = (np.asarray(getattr(scores, name)) for _, _, scores in (on_gpu, on_cpu))
        assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max(), name


def test_bfloat16_finds_what_float32_does(
    learned: tuple[Path, Any], on_gpu: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    _, scores = attributed(learned[0] / "model", tmp_path, general__device="cuda", general__dtype="bfloat16")
    for found, expected in zip(scores.matrix, on_gpu[2].matrix, strict=True):
        assert np.corrcoef(found, expected)[0, 1] > 0.99  # ranks of those near zero are noise
        assert found.argmax() == expected.argmax()


def test_exact_rows_of_the_index_are_those_of_the_scores(on_gpu: tuple[Path, TrainedModel, Any]) -> None:
    folder, trained, scores = on_gpu
    explainer = Explainer(trained, folder / "factors", Index.read(folder / "index"))
    for number in range(len(QUERIES)):
        query = explainer.query(trained.tokenize(QUERIES).subset([number]))
        expected = np.asarray(scores.matrix[number], np.float64)
        found = explainer.exact(query, range(len(ROWS))).scores
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_question_to_a_billion_parameters_takes_no_more_memory_than_planned(
    tmp_path: Path,
) -> None:
    """Random weights and all MLP projections; the eigenvectors are not computed, which would take many minutes."""
    config = config_of(general__device="cuda", general__dtype="bfloat16", general__max_length=256)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**BILLION)).to(torch.bfloat16).eval()
    trained = TrainedModel.of(model, TOKENIZER, ROWS, config)
    with watched() as planned, patch("whence.influence.fit.symmetric_eigen", no_eigen):
        for name, work in {
            "fit": lambda: whence.fit_factors(trained, tmp_path / "factors"),
            "index": lambda: whence.make_index(trained, tmp_path / "factors", tmp_path / "index"),
            "question": lambda: ask(trained, tmp_path),
        }.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            planned.clear()
            work()
            peak, most = torch.cuda.max_memory_allocated(), max(phase.total for phase in planned)
            print(f"{name}: planned {most / 2**30:.1f} GiB, took {peak / 2**30:.1f} GiB")
            assert peak <= most


def ask(trained: TrainedModel, folder: Path) -> None:
    explainer = Explainer(trained, folder / "factors", Index.read(folder / "index"))
    query = explainer.query(trained.tokenize(QUERIES.head(1)))
    nearest = explainer.index.nearest(query.sketch, 8)
    assert np.isfinite(explainer.exact(query, nearest.rows).scores).all()


@contextmanager
def watched() -> Iterator[list[memory.Phase]]:
    """The phases that are planned while this is open."""
    planned: list[memory.Phase] = []
    require = memory.require_memory

    def note(phases: list[memory.Phase], room: int, hint: str) -> None:
        planned.extend(phases)
        require(phases, room, hint)

    with patch.object(memory, "require_memory", note):
        yield planned


def no_eigen(matrix: torch.Tensor, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    return matrix.diagonal().clone(), torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
