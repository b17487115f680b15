"""Adapters on a CUDA device: under bfloat16, and on a base in 4 bits."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

import whence  # noqa: E402
from whence.evaluation.generation import stream_answer  # noqa: E402
from whence.models.builtin import tiny_llama, train_tokenizer  # noqa: E402
from whence.models.loading import load_model, load_trainable  # noqa: E402
from whence.models.trained import TrainedModel, own_config  # noqa: E402
from whence.running.lineage import hand_on_base  # noqa: E402
from whence.training import train  # noqa: E402

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "dark"}
OTHERS = dict(zip(COLOURS.values(), reversed(COLOURS.values()), strict=True))
ROWS = pd.DataFrame([{"prompt": f"{'see ' * more}the {thing} is", "completion": colour}
                     for more in range(6) for thing, colour in COLOURS.items()])  # fmt: skip


def run(base: Path, folder: Path, rows: pd.DataFrame, **settings: object) -> Path:
    config = config_of(**settings)
    language = load_trainable(base, config)
    examples = language.tokenize(rows)
    train(language, examples, examples.subset(range(4)), output=folder / "model",
          checkpoints=folder / "checkpoints", on_log=lambda step, metrics: None)  # fmt: skip
    hand_on_base(base, folder / "model")
    return folder / "model"


def config_of(**settings: object):  # type: ignore[no-untyped-def]
    own = {"general.max_length": 32, "generation.max_new_tokens": 4, "general.device": "cuda",
           "training.num_train_epochs": 24, "training.per_device_train_batch_size": 4, "training.learning_rate": 5e-3,
           "training.dataloader_num_workers": 0, "factors.use_empirical_fisher": True}  # fmt: skip
    return own_config(own | {name.replace("__", "."): value for name, value in settings.items()})


@pytest.mark.parametrize("quantize", [None, "4bit"])
def test_an_adapter_learns_answers_and_its_examples_are_found(quantize: str | None, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([f"{row.prompt} {row.completion}" for row in ROWS.itertuples()])
    tiny_llama(len(tokenizer), 32, seed=0).save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    others = ROWS.assign(completion=ROWS["completion"].map(OTHERS))
    base = run(tmp_path / "random", tmp_path / "base", others, training__learning_rate=2e-3)
    lora = {"training__lora__enabled": True, "training__lora__quantize": quantize}
    adapted = run(base, tmp_path / "adapted", ROWS, **lora)
    config = config_of(**lora)
    loaded = load_model(adapted, config)
    for thing, colour in COLOURS.items():
        *_, last = stream_answer(loaded, f"the {thing} is")
        assert last.text == colour
    trained = TrainedModel.of(loaded.model, loaded.tokenizer, ROWS, config)
    whence.fit_factors(trained, tmp_path / "factors")
    queries = pd.DataFrame([{"query_id": thing, "prompt": f"see see the {thing} is", "completion": colour}
                            for thing, colour in COLOURS.items()])  # fmt: skip
    scores = whence.score(trained, tmp_path / "factors", queries, tmp_path / "scores")
    for thing, colour in COLOURS.items():
        assert set(scores.rank(thing, top_k=5)["completion"]) == {colour}
