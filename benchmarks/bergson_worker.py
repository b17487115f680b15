"""bergson's own fit and scores, run by the interpreter of bergson's environment: see ``against_bergson.py``.

One line of JSON in (what to do, and with what), one line out (the seconds it took). The process stays, so that neither
side pays for imports, and a warmed-up process is compared with a warmed-up one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bergson import build as build_module
from bergson.config.config import DataConfig, HessianConfig, IndexConfig, PreprocessConfig, ScoreConfig
from bergson.data import load_scores
from bergson.hessians import hessian_approximations as hessian_module
from bergson.score import score as score_module

# What loads the model and the data; the other side has both in memory when its clock starts.
LOADING = [
    (module, name)
    for module in (hessian_module, build_module, score_module)
    for name in ("setup_model_and_peft", "setup_data_pipeline")
]


@dataclass(frozen=True)
class Job:
    """One request: ``fit`` or ``score``, on what lies in ``folder``."""

    work: str
    folder: Path
    untracked: str
    batch_tokens: int
    empirical: bool

    def index(self, run: str, data: str) -> IndexConfig:
        return IndexConfig(
            run_path=str(self.folder / run),
            overwrite=True,
            model=str(self.folder / "model"),
            data=DataConfig(dataset=str(self.folder / data)),
            filter_modules=self.untracked,
            token_batch_size=self.batch_tokens,
        )


def fit(job: Job) -> None:
    """``bergson hessian --method kfac --ev_correction``: EKFAC with covariances, eigenvectors and lambda on disk."""
    index = job.index("factors", "train")
    fresh(index)
    hessian = HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=job.empirical)
    hessian_module.approximate_hessians(index, hessian)


def score(job: Job) -> None:
    """``bergson build`` on the queries, then ``bergson score`` with the factors: query gradients preconditioned."""
    queries = job.index("queries_index", "queries")
    fresh(queries)
    build_module.build(queries, PreprocessConfig())
    index = job.index("scores", "train")
    fresh(index)
    preprocess = PreprocessConfig(hessian_path=str(job.folder / "factors"), ev_correction=True)
    score_module.score_dataset(index, ScoreConfig(query_path=queries.run_path), preprocess)


def fresh(index: IndexConfig) -> None:
    """Without what an earlier turn left, which bergson would refuse to overwrite."""
    for path in (index.run_path, index.partial_run_path):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def loading_timed(seconds: list[float]) -> Iterator[None]:
    """Append to ``seconds`` what every loading of model or data takes."""
    originals = [getattr(module, name) for module, name in LOADING]

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            seconds.append(time.perf_counter() - started)
            return result

        return call

    for (module, name), original in zip(LOADING, originals, strict=True):
        setattr(module, name, clocked(original))
    try:
        yield
    finally:
        for (module, name), original in zip(LOADING, originals, strict=True):
            setattr(module, name, original)


def run(request: dict[str, Any]) -> dict[str, float]:
    """Seconds of the work without loading, and of the loading."""
    job = Job(**request | {"folder": Path(request["folder"])})
    loading: list[float] = []
    with loading_timed(loading), contextlib.redirect_stdout(sys.stderr):
        started = time.perf_counter()
        {"fit": fit, "score": score}[job.work](job)
        taken = time.perf_counter() - started
    if job.work == "score":
        scores = torch.from_numpy(load_scores(job.folder / "scores")[:].copy())
        torch.save(scores, job.folder / "scores.pt")
    return {"seconds": taken - sum(loading), "loading": sum(loading)}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
