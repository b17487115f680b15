"""Whence's attribution engine beside stock kronfluence 1.0.1 and bergson 2.5.1, on the same model, data and machine.

``python benchmarks/influence.py`` prints one line per row: what was measured, seconds of both (medians, measured in
turns), the ratio, and how far the results are apart. ``--rows`` chooses among them; ``--scale 0.05`` is a short look.
Real patent abstracts are used where they are (``WHENCE_SHARED``), random words otherwise.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from against_bergson import Bergson
from common import (
    LONGEST,
    NARROW,
    WIDE,
    Shape,
    examples,
    make_model,
    matrix_throughput,
    quiet,
    settings,
    timed,
    trained,
)
from environments import Unavailable
from peak import peak_memory
from scipy.stats import spearmanr
from stock import Batched, Stock
from torch.utils.flop_counter import FlopCounterMode

from whence.data.batching import plan_batches
from whence.data.tokenization import TokenizedExamples
from whence.influence.activations import Kept, kept_per_token
from whence.influence.detail import Detail, divide_scores
from whence.influence.factors import FactorsInfo, fit_factors, load_factors
from whence.influence.scores import pairwise_scores
from whence.influence.scoring import Scoring
from whence.threads import available_cpus

LISTED = 20  # of both ends per query, the default of scores.top_k
PAD, BUDGET = 0, 8 * LONGEST  # stock's batches of 8 examples of 512 tokens


@dataclass(frozen=True)
class Row:
    """One line of the table; ``ratio`` is how many times better than the other, or the share reached."""

    work: str
    against: str
    ours: str
    theirs: str
    ratio: str
    difference: str
    goal: str


@dataclass(frozen=True)
class Bench:
    """How much of each row's data is used, and how often it is measured."""

    scale: float
    repeats: int
    folder: Path

    def data(self, shape: Shape, train: int, queries: int = 0) -> tuple[TokenizedExamples, TokenizedExamples]:
        """Training examples, and queries that are none of them."""
        counts = [max(2, round(self.scale * number)) if number else 0 for number in (train, queries)]
        both = examples(sum(counts), shape.vocabulary)[0]
        return both.subset(range(counts[0])), both.subset(range(counts[0], sum(counts)))

    def turns(self, *works: Callable[[], float]) -> list[float]:
        """Median seconds of each, run in turns so that a busy moment of the machine meets all alike."""
        seconds = [[work() for work in works] for _ in range(self.repeats)]
        print(" / ".join(str([f"{value:.2f}" for value in of]) for of in zip(*seconds, strict=True)), file=sys.stderr)
        return [statistics.median(of) for of in zip(*seconds, strict=True)]

    def fit(self, shape: Shape, train: TokenizedExamples, name: str = "ours", empirical: bool = False) -> FactorsInfo:
        config = settings(factors__use_empirical_fisher=empirical)
        with quiet():
            return fit_factors(trained(make_model(shape), train, config), self.folder / name)


def batched(train: TokenizedExamples) -> Batched:
    """The batches that Whence makes, for stock kronfluence."""
    return Batched(train, plan_batches(train.lengths, BUDGET))


def fit_padded(bench: Bench) -> Iterator[Row]:
    yield from _fit_against(bench, "stock, padded to 512", lambda train: train, ">= 6x")


def fit_sorted(bench: Bench) -> Iterator[Row]:
    yield from _fit_against(bench, "stock, the same batches", batched, ">= 1.8x")


def _fit_against(
    bench: Bench, against: str, given: Callable[[TokenizedExamples], TokenizedExamples | Batched], goal: str
) -> Iterator[Row]:
    train, _ = bench.data(NARROW, 512)
    stock = Stock(NARROW, bench.folder / "stock")

    def both(seconds: dict[str, float]) -> float:
        return seconds["covariance"] + seconds["lambda"]

    ours, theirs = bench.turns(
        lambda: both(bench.fit(NARROW, train).seconds), lambda: both(stock.fit(given(train)))
    )  # fmt: skip
    found = load_factors(bench.folder / "ours")["lambda_matrix"]
    expected = stock.factors()["lambda_matrix"]
    traces = [float(sum(matrix.double().sum() for matrix in of.values())) for of in (found, expected)]
    apart = f"trace of lambda {abs(traces[0] / traces[1] - 1):.1%} (labels sampled anew)"
    work = f"covariance + lambda, {NARROW}, {len(train)} abstracts"
    yield Row(work, against, f"{ours:.1f} s", f"{theirs:.1f} s", f"{theirs / ours:.2f}x", apart, goal)


def lambda_wide(bench: Bench) -> Iterator[Row]:
    train, _ = bench.data(WIDE, 64)
    stock = Stock(WIDE, bench.folder / "stock")
    ours, theirs = bench.turns(
        lambda: bench.fit(WIDE, train, empirical=True).seconds["lambda"],
        lambda: stock.fit(batched(train), use_empirical_fisher=True)["lambda"],
    )
    apart = f"lambda {_lambda_apart(bench.folder / 'ours', stock):.1e}"
    work = f"lambda, {WIDE}, {len(train)} abstracts"
    yield Row(work, "stock, the same batches", f"{ours:.1f} s", f"{theirs:.1f} s", f"{theirs / ours:.2f}x", apart,
              ">= 4x")  # fmt: skip


def scores_padded(bench: Bench) -> Iterator[Row]:
    train, queries = bench.data(NARROW, 128, 64)
    bench.fit(NARROW, train, "both")
    stock = Stock(NARROW, bench.folder / "both")
    found: dict[str, torch.Tensor] = {}

    def ours() -> float:
        seconds, found["ours"] = score(bench, NARROW, queries, train)
        return seconds

    def theirs() -> float:
        seconds, found["theirs"] = stock.score(queries, train)
        return seconds

    own, other = bench.turns(ours, theirs)
    work = f"pairwise scores, {len(queries)} queries, {NARROW}, {len(train)} abstracts"
    yield Row(work, "stock, padded to 512, queries by 8", f"{own:.1f} s", f"{other:.1f} s", f"{other / own:.2f}x",
              _scores_apart(found["ours"], found["theirs"]), ">= 4x")  # fmt: skip


def numbers(bench: Bench) -> Iterator[Row]:
    train, queries = bench.data(NARROW, 64, 16)
    bench.fit(NARROW, train, empirical=True)
    stock = Stock(NARROW, bench.folder / "stock")
    batches = plan_batches(train.lengths, BUDGET)
    stock.fit(Batched(train, batches), use_empirical_fisher=True)
    _, ours = score(bench, NARROW, queries, train, "ours")
    _, theirs = stock.score(queries, Batched(train, batches))
    theirs = theirs[:, torch.tensor([index for batch in batches for index in batch]).argsort()]
    apart = f"lambda {_lambda_apart(bench.folder / 'ours', stock):.1e}, {_scores_apart(ours, theirs)}"
    work = f"numbers, {NARROW}, {len(train)} abstracts, {len(queries)} queries"
    yield Row(work, "stock, the same batches and labels, fp32", "", "", "", apart, "<= 1e-4, Spearman >= 0.9999")


def memory(bench: Bench) -> Iterator[Row]:
    train, queries = bench.data(WIDE, 64, 16)
    bench.fit(WIDE, train, "both")
    ours = peak_memory("ours", bench.folder / "both", len(queries), len(train))
    theirs = peak_memory("stock", bench.folder / "both", len(queries), len(train))
    work = f"peak memory of scoring, {len(queries)} queries, {WIDE}, {len(train)} abstracts"
    against = "stock, padded to 512, queries by 8, batches of as many tokens"
    sizes = [f"{size / 2**30:.2f} GiB" for size in (ours, theirs)]
    yield Row(work, against, *sizes, f"{ours / theirs:.2f}x", "", "<= 0.6x")


def bergson_fit(bench: Bench) -> Iterator[Row]:
    """Whole calls, writing the factors included; bergson's loading of model and data is taken off its time."""
    train, queries = bench.data(NARROW, 128, 16)
    with Bergson(make_model(NARROW), bench.folder, train, queries) as other:
        for empirical, labels in ((False, "sampled labels"), (True, "the data's labels")):
            ours, theirs = bench.turns(
                lambda empirical=empirical: timed(lambda: bench.fit(NARROW, train, empirical=empirical))[0],
                lambda empirical=empirical: other.fit(empirical),
            )
            work = f"whole EKFAC fit, {labels}, {NARROW}, {len(train)} abstracts"
            yield Row(work, "bergson 2.5.1, batches as large", f"{ours:.1f} s", f"{theirs:.1f} s",
                      f"{theirs / ours:.2f}x", "", ">= 1.3x")  # fmt: skip


def bergson_scores(bench: Bench) -> Iterator[Row]:
    train, queries = bench.data(NARROW, 128, 16)
    bench.fit(NARROW, train, "both", empirical=True)
    found: dict[str, torch.Tensor] = {}
    with Bergson(make_model(NARROW), bench.folder, train, queries) as other:
        other.fit(empirical=True)

        def ours() -> float:
            seconds, found["ours"] = score(bench, NARROW, queries, train)
            return seconds

        def theirs() -> float:
            seconds, found["theirs"] = other.score()
            return seconds

        own, other_s = bench.turns(ours, theirs)
    work = f"pairwise scores, {len(queries)} queries, {NARROW}, {len(train)} abstracts"
    yield Row(work, "bergson 2.5.1, batches as large", f"{own:.1f} s", f"{other_s:.1f} s", f"{other_s / own:.2f}x",
              _scores_apart(found["ours"], found["theirs"]), ">= 1.3x")  # fmt: skip


def detail(bench: Bench) -> Iterator[Row]:
    """Dividing the scores that are listed among tokens and modules, beside the scores themselves."""
    train, queries = bench.data(NARROW, 512, 8)
    bench.fit(NARROW, train, "both", empirical=True)
    _, scores = score(bench, NARROW, queries, train)
    order = scores.argsort(dim=1)
    ends = torch.cat([order[:, :LISTED], order[:, -LISTED:]], dim=1) if len(train) > 2 * LISTED else order
    pairs = [(query, example) for query, row in enumerate(ends.tolist()) for example in row]
    model = trained(make_model(NARROW), train, settings())
    scoring = Scoring(model, bench.folder / "both", bench.folder / "parts", queries=queries)
    found: dict[str, Detail] = {}

    def ours() -> float:
        with quiet():
            seconds, found["detail"] = timed(lambda: divide_scores(scoring, pairs))
        return seconds

    own, other = bench.turns(ours, lambda: score(bench, NARROW, queries, train)[0])
    expected = torch.stack([scores[pair] for pair in pairs])
    sums = torch.tensor([shares.sum() for shares in found["detail"].tokens])
    apart = f"sums {float((sums - expected).norm() / expected.norm()):.1e}"
    work = f"tokens and modules of {len(set(ends.flatten().tolist()))} abstracts, {len(pairs)} pairs, {NARROW}"
    against = f"pairwise scores, {len(queries)} queries, {len(train)} abstracts"
    yield Row(work, against, f"{own:.1f} s", f"{other:.1f} s", f"{other / own:.2f}x", apart, ">= 1x")


def shared(bench: Bench) -> Iterator[Row]:
    """A fit of all linear modules whose inputs are shared, beside the same fit as if none were."""
    train, _ = bench.data(NARROW, 256)

    def fit(found: Callable[[Kept], Kept]) -> float:
        config = settings(factors__modules=["*layers.*_proj"])
        known = patch("whence.influence.fit.kept_per_token", lambda *given: found(kept_per_token(*given)))
        with known, quiet():
            return fit_factors(trained(make_model(NARROW), train, config), bench.folder / "f").seconds["total"]

    ours, theirs = bench.turns(lambda: fit(lambda kept: kept), lambda: fit(lambda kept: kept._replace(sharing={})))
    work = f"whole fit of attention and MLP, {NARROW}, {len(train)} abstracts"
    yield Row(work, "each module by itself", f"{ours:.1f} s", f"{theirs:.1f} s", f"{theirs / ours:.2f}x", "", "> 1x")


def throughput(bench: Bench) -> Iterator[Row]:
    """Counted operations of the two phases, over their time, over what the machine's matrix product reaches."""
    train, _ = bench.data(WIDE, 64)
    with FlopCounterMode(display=False) as counted:
        bench.fit(WIDE, train)
    reached, there = [], []
    for _ in range(bench.repeats):
        there.append(matrix_throughput())
        seconds = bench.fit(WIDE, train).seconds
        reached.append(counted.get_total_flops() / (seconds["covariance"] + seconds["lambda"]))
    own, most = statistics.median(reached), max(there)
    work = f"covariance + lambda, {WIDE}, {len(train)} abstracts"
    yield Row(work, "this machine's fp32 matrix product", f"{own / 1e9:.0f} GFLOP/s", f"{most / 1e9:.0f} GFLOP/s",
              f"{own / most:.0%}", "", ">= 50 %")  # fmt: skip


def score(
    bench: Bench, shape: Shape, queries: TokenizedExamples, train: TokenizedExamples, name: str = "both"
) -> tuple[float, torch.Tensor]:
    with quiet():
        model = trained(make_model(shape), train, settings())
        return timed(lambda: pairwise_scores(model, bench.folder / name, queries, bench.folder / "parts"))


def _lambda_apart(ours: Path, stock: Stock) -> float:
    """The largest relative difference (Frobenius) of any module's lambda."""
    found, expected = load_factors(ours)["lambda_matrix"], stock.factors()["lambda_matrix"]
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


def _scores_apart(found: torch.Tensor, expected: torch.Tensor) -> str:
    relative = float((found - expected).norm() / expected.norm())
    return f"scores {relative:.1e}, Spearman {spearmanr(found.flatten(), expected.flatten()).statistic:.6f}"


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "fit-padded": fit_padded,
    "fit-sorted": fit_sorted,
    "lambda-wide": lambda_wide,
    "scores-padded": scores_padded,
    "memory": memory,
    "numbers": numbers,
    "detail": detail,
    "shared": shared,
    "throughput": throughput,
    "bergson-fit": bergson_fit,
    "bergson-scores": bergson_scores,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of each row's examples")
    parser.add_argument("--repeats", type=int, default=3, help="measurements, of which the median is given")
    parser.add_argument("--threads", type=int, default=available_cpus())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.disable(logging.WARNING)
    print(f"torch {torch.__version__}, {given.threads} threads, {examples(2, 300)[1]}, load {os.getloadavg()[0]:.1f}\n")
    print("| work | against | Whence | the other | ratio | apart | goal |\n|---|---|---|---|---|---|---|")
    for name in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for row in ROWS[name](Bench(given.scale, given.repeats, Path(folder))):
                    print("| " + " | ".join(vars(row).values()) + " |", flush=True)
            except Unavailable as error:
                print(f"{name} is left out: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
