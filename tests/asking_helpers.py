"""The folder of a run that can be asked, without the pipeline: a tiny model, its factors and its index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import whence
from whence.config import Config
from whence.running.lineage import hand_on
from whence.validation.evidence import Evidence, Grade

THINGS = "lens loom valve claim sensor bridge polymer boiler yarn light text class wheel lamp".split()


def make_run(folder: Path, model: Any, tokenizer: Any, make_config: Callable[..., Config], **settings: Any) -> Path:
    """What the stages leave of a model that was trained on one example for each thing."""
    artifacts = folder / "artifacts"
    asking = {"index.dimensions": 1024, "index.candidates": 8, "dataset.template": "{input} is"}
    config = make_config(asking | settings)
    train = pd.DataFrame({"prompt": [f"The {thing} is" for thing in THINGS], "completion": THINGS[::-1]})
    trained = whence.TrainedModel.of(model, tokenizer, train, config)
    trained.text.write(artifacts / "prepare" / "train_data")
    for place in ("model", "model/lineage/base"):
        model.save_pretrained(artifacts / "train" / place)
        tokenizer.save_pretrained(artifacts / "train" / place)
    hand_on(config, None, artifacts / "train" / "model")
    whence.fit_factors(trained, artifacts / "fit-factors" / "factors")
    whence.make_index(trained, artifacts / "fit-factors" / "factors", artifacts / "index" / "index")
    grade = Grade(word="weak", sentence="Weak evidence.", criteria=[])
    Evidence(grade=grade, measures=[], not_measured=[]).write(artifacts / "validate" / "evidence" / "evidence.json")
    return folder
