"""Whether the demo learns its facts and finds their examples, whatever the seed, the threads and the processor.

    python benchmarks/demo.py --seeds 0 1 2 3 4 --threads 1 2 --capabilities default avx2 --at-once 2

Each line is a process of its own that prepares, trains, answers, fits and scores as the pipeline does. Facts and
sections are questions answered right; *least sure* is the probability of the facts' least probable answer, *last place*
the worst rank of a planted example (5 is perfect). ``--set`` tries another recipe.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from common import quiet

import whence
from whence.config import Config
from whence.config_file import inline_prompts, load_config, parse_override
from whence.data.dataset import ExampleSet
from whence.data.preparation import prepare_datasets
from whence.data.prompts import load_prompts
from whence.data.tokenization import TokenizedExamples
from whence.evaluation.generation import answer_examples, generate
from whence.evaluation.outcomes import answer_logprobs
from whence.influence.factors import fit_factors
from whence.influence.scores import pairwise_scores, self_influence
from whence.models.loading import load_base, load_base_tokenizer, write_base
from whence.models.trained import TrainedModel
from whence.training import TrainingResult, train
from whence.validation.truth import auroc_statistic

PROFILE = Path(whence.__file__).resolve().parents[1] / "configs" / "demo.yaml"
COLUMNS = ("seed", "threads", "capability", "facts", "sections", "least sure", "recall at 10", "last place",
           "accuracy", "flipped AUROC", "training CPU s", "CPU s")  # fmt: skip


def demo_config(overrides: Sequence[str]) -> Config:
    """The demo's settings with ``KEY=VALUE`` overrides, and its prompts."""
    return inline_prompts(load_config(PROFILE, dict(map(parse_override, overrides))))


class Demo:
    """The demo in this process, in a folder of its own."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.train_data, self.eval_data = prepare_datasets(config, self._make_base)
        base = load_base(folder / "base", config)
        self.trained = TrainedModel.of(base.model, base.tokenizer, self.train_data.frame, config)

    def _make_base(self, texts: list[str]):
        write_base(self.config, texts, self.folder / "base")
        return load_base_tokenizer(self.folder / "base")

    def train(self) -> TrainingResult:
        return train(
            self.trained, self.trained.examples, self.trained.tokenize(self.eval_data.frame),
            output=self.folder / "model", checkpoints=self.folder / "checkpoints", on_log=lambda step, metrics: None,
        )  # fmt: skip

    def answers(self) -> dict[str, float]:
        """What the trained model knows."""
        prompts = load_prompts(self.config)
        facts = np.array([bool(prompt.planted) for prompt in prompts])
        answers = generate(self.trained, prompts, "finetuned")["answer"]
        right = answers.to_numpy() == [prompt.reference for prompt in prompts]
        logprobs = answer_logprobs(self.trained.model, self._queries())
        held_out = answer_examples(self.trained, self.eval_data.frame, sorted(self.eval_data.info.labels))
        return {
            "facts": float(right[facts].sum()),
            "sections": float(right[~facts].sum()),
            "least sure": float(np.exp(logprobs[facts].min())),
            "accuracy": float(held_out["correct"].mean()),
        }

    def attributions(self) -> dict[str, float]:
        """What is ranked first for the facts, and which labels stand out."""
        factors = self.folder / "factors"
        fit_factors(self.trained, factors)
        scores = pairwise_scores(self.trained, factors, self._queries(), self.folder / "scores").numpy()
        own = self_influence(self.trained, factors, self.folder / "own").numpy()
        truth = self._truth()
        recalls, last = [], 0
        for row, prompt in zip(scores, load_prompts(self.config), strict=True):
            places = np.flatnonzero(truth["planted"].to_numpy()[np.argsort(-row)] == prompt.planted)
            if prompt.planted and len(places):
                recalls.append((places < 10).mean())
                last = max(last, int(places.max()) + 1)
        auroc = auroc_statistic(truth["flipped"].to_numpy(bool), own)(np.ones((1, len(own))))[0]
        return {"recall at 10": float(np.mean(recalls)), "last place": float(last), "flipped AUROC": float(auroc)}

    def _queries(self) -> TokenizedExamples:
        asked = [(prompt.prompt, prompt.reference) for prompt in load_prompts(self.config)]
        return self.trained.tokenize(pd.DataFrame(asked, columns=["prompt", "completion"]))

    def _truth(self) -> pd.DataFrame:
        examples: ExampleSet = self.train_data
        return examples.truth.set_index("example_id").loc[examples.frame["example_id"]]


def measure(overrides: Sequence[str]) -> dict[str, float]:
    """One demo in this process."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        demo = Demo(demo_config(overrides), Path(folder))
        before = cpu_seconds()
        demo.train()
        training = cpu_seconds() - before
        measured = demo.answers() | demo.attributions()
    return measured | {"training CPU s": training, "CPU s": cpu_seconds()}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure_apart(seed: int, threads: int, capability: str, overrides: Sequence[str]) -> dict[str, object]:
    """The same in a process with these threads and instructions."""
    environment = {"OMP_NUM_THREADS": str(threads)}
    if capability != "best":
        environment["ATEN_CPU_CAPABILITY"] = capability
    command = [sys.executable, __file__, "--here", "--set", f"general.seed={seed}", *overrides]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return {"seed": seed, "threads": threads, "capability": capability} | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--capabilities", nargs="+", default=["best"], choices=["best", "default", "avx2", "avx512"])
    parser.add_argument("--at-once", type=int, default=1, help="processes at a time")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of another recipe")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.set)))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    cases = itertools.product(given.seeds, given.threads, given.capabilities)
    with ThreadPoolExecutor(given.at_once) as pool:
        for row in pool.map(lambda case: measure_apart(*case, given.set), cases):
            cells = (f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
