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
from bergson.cli.trackstar import trackstar as trackstar_pipeline
from bergson.config.config import (
    DataConfig,
    HessianConfig,
    IndexConfig,
    PreprocessConfig,
    QuerySetConfig,
    ScoreConfig,
    TrackstarConfig,
)
from bergson.data import load_scores
from bergson.hessians import hessian_approximations as hessian_module
from bergson.score import score as score_module

PROJECTION = 16  # of each side of a module's gradient: bergson's default for trackstar
# What loads the model and the data; the other side has both in memory when its clock starts.
LOADING = [
    (module, name)
    for module in (hessian_module, build_module, score_module)
    for name in ("setup_model_and_peft", "setup_data_pipeline")
]


@dataclass(frozen=True)
class Job:
    """One request: the name of a function below, on what lies in ``folder``."""

    work: str
    folder: Path
    untracked: str
    batch_tokens: int
    empirical: bool

    def index(self, run: str, data: str, **more: Any) -> IndexConfig:
        return IndexConfig(
            **more,
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
    scored(job, PreprocessConfig(hessian_path=str(job.folder / "factors"), ev_correction=True))


def query(job: Job) -> None:
    """What ``bergson query`` ranks by, for all queries: products of projected gradients."""
    scored(job, PreprocessConfig(), projection_dim=PROJECTION)


def scored(job: Job, preprocess: PreprocessConfig, **more: Any) -> None:
    """Scores of the training set on the queries, whose gradients are collected first."""
    queries = job.index("queries_index", "queries", **more)
    fresh(queries)
    build_module.build(queries, PreprocessConfig())
    index = job.index("scores", "train", **more)
    fresh(index)
    score_module.score_dataset(index, ScoreConfig(query_path=queries.run_path), preprocess)


def store(job: Job) -> None:
    """``bergson build``: the training set's gradients, projected on both sides, for ``bergson query`` to search."""
    index = job.index("store", "train", projection_dim=PROJECTION)
    fresh(index)
    build_module.build(index, PreprocessConfig())


def trackstar(job: Job) -> None:
    """``bergson trackstar`` as it is by default, of gradients of length 1 (Chang et al., 2024)."""
    index = job.index("trackstar", "train", projection_dim=PROJECTION)
    fresh(index)
    settings = TrackstarConfig(
        query=QuerySetConfig(dataset=str(job.folder / "queries")),
        preprocess_cfg=PreprocessConfig(unit_normalize=True),
        stats_sample_size=None,
    )
    trackstar_pipeline(index, settings)
    shutil.rmtree(job.folder / "scores", ignore_errors=True)
    shutil.move(job.folder / "trackstar" / "scores", job.folder / "scores")


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
        {"fit": fit, "score": score, "store": store, "query": query, "trackstar": trackstar}[job.work](job)
        taken = time.perf_counter() - started
    if job.work in ("score", "query", "trackstar"):
        scores = torch.from_numpy(load_scores(job.folder / "scores")[:].copy())
        torch.save(scores, job.folder / "scores.pt")
    return {"seconds": taken - sum(loading), "loading": sum(loading)}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
