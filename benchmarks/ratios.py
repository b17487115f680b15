"""What attribution costs beside the training that it explains: the same rows, the same machine, one run.

``python benchmarks/ratios.py --rows 400`` trains the small pretrained Llama for an epoch on real patent abstracts
(where ``WHENCE_SHARED`` says), fits factors on all of them, scores held-out abstracts with everything that comes from
the pass (self-influence, codes, baselines), without and with the detail of the listed rows, and takes the cheap
evidence without its training steps. Seconds are the processor's, so that other work on the machine does not lengthen
them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import LLAMA, abstracts, patent_settings, processor_time, quiet

from whence.evaluation.outcomes import answer_logprobs
from whence.influence.factors import fit_factors
from whence.influence.results import Scores
from whence.influence.scores import pairwise_scores, score
from whence.models.loading import load_model
from whence.models.trained import TrainedModel
from whence.training import train
from whence.validation.measures import Measures
from whence.validation.tail_patch import with_room

TRAINING = {"training__per_device_train_batch_size": 8, "training__dataloader_num_workers": 0,
            "training__learning_rate": 1e-3, "validation__measures": ["planted", "mislabeled"]}  # fmt: skip


def measured(
    rows: pd.DataFrame, queries: pd.DataFrame, settings: Mapping[str, Any], folder: Path
) -> Iterator[tuple[str, float, str]]:
    """What was done, its seconds, and the goal for their ratio to those of training."""
    config = patent_settings(**settings)
    base = load_model(LLAMA, config)
    examples, asked = base.tokenize(rows), base.tokenize(queries)
    work = {"output": folder / "model", "checkpoints": folder / "checkpoints", "on_log": lambda *_: None}
    yield "an epoch of training", processor_time(lambda: train(base, examples, asked.subset([0]), **work)), ""
    trained = TrainedModel.of(base.model.eval(), base.tokenizer, rows, config)
    yield "factors on all rows", processor_time(lambda: fit_factors(trained, folder / "factors")), "<= 2.0"
    alone = processor_time(lambda: pairwise_scores(trained, folder / "factors", asked, folder / "alone"))
    yield "pairwise scores alone", alone, ""
    undivided = trained.with_config(patent_settings(**settings, scores__detail=False))
    of_pass = processor_time(lambda: score(undivided, folder / "factors", queries, folder / "undivided"))
    yield "scores with everything that the pass gives", of_pass, ""
    everything = processor_time(lambda: score(trained, folder / "factors", queries, folder / "scores"))
    yield "the same and the detail of the listed rows", everything, "<= 1.3"
    measures = Measures(trained, Scores(folder / "scores"), folder / "model", LLAMA, folder / "retrained", folder)

    def evidence() -> None:
        measures.evidence()
        with_room(answer_logprobs(trained.model, asked))  # what a tail patch looks at before its steps

    yield "cheap evidence without training steps", processor_time(evidence), "<= 0.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400, help="training abstracts")
    parser.add_argument("--queries", type=int, default=32, help="held-out abstracts with their sections")
    parser.add_argument("--loss-on", choices=("answer", "all"), default="answer")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.disable(logging.WARNING)
    settings = TRAINING | {"dataset__loss_on": given.loss_on}
    rows, queries = abstracts("train", given.rows), abstracts("eval", given.queries)
    with tempfile.TemporaryDirectory() as folder:
        training = 0.0
        with quiet():
            for what, seconds, goal in measured(rows, queries, settings, Path(folder)):
                training = training or seconds
                print(f"{what:44} {seconds:8.1f} s  {seconds / training:5.2f}  {goal}", flush=True)
    print(f"{given.rows} abstracts, {given.queries} queries, loss on {given.loss_on}, {given.threads} threads")


if __name__ == "__main__":
    main()
