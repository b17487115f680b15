"""The index beside exact EKFAC: what its codes find, what an example takes, and how long a question waits.

``python benchmarks/index.py --rows 1600`` fits, scores and indexes real patent abstracts under the small pretrained
Llama, after an epoch of training on them, and prints one line per figure; ``--loss-on all`` with the loss on every
token. ``--lds 16`` also trains on so many random halves of the rows, to see what the two-step ranking predicts of
them; ``--bergson`` adds bergson's indexes. ``--scan 16000 100000 1000000`` searches so many generated codes,
``--inverted 16000 100000`` generated rows in inverted lists; ``--rows 0`` does these alone. Real data are looked for
where ``WHENCE_SHARED`` says.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from against_bergson import Bergson
from common import LLAMA, abstracts, patent_settings, processor_time, quiet
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from whence.config import Config
from whence.data.tokenization import TokenizedExamples
from whence.evaluation.outcomes import answer_logprobs
from whence.influence.collectors import SKETCHES, WhitenedCollector, Whitening, collect
from whence.influence.explain import Explainer
from whence.influence.factors import open_fit, write_factors
from whence.influence.index import TOP, Index, IndexInfo
from whence.influence.loader import Loader
from whence.influence.ranking import best_first
from whence.influence.scores import make_index
from whence.influence.scoring import Scoring
from whence.influence.sketch import Sketch
from whence.models.trained import TrainedModel
from whence.validation.lds import linear_datamodeling_scores, random_subsets

CANDIDATES, SHOWN = 50, 20  # scored exactly
BLOCK = 1000  # generated rows at a time
Line = tuple[str, str, str]  # what, found, goal


def one_epoch(model: PreTrainedModel, examples: TokenizedExamples) -> PreTrainedModel:
    """Train ``model`` once on the examples, in a seeded order."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, len(examples), 8):
        model(**examples.batch(order[start : start + 8])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def fine_tuned(rows: int, config: Config, folder: Path | None) -> TrainedModel:
    """The pretrained Llama after an epoch on the rows, kept in ``folder``."""
    tokenizer, kept = AutoTokenizer.from_pretrained(LLAMA), folder is not None and (folder / "config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder if kept else LLAMA).eval()
    trained = TrainedModel.of(model, tokenizer, abstracts("train", rows), config)
    if not kept:
        one_epoch(model, trained.examples)
        if folder is not None:
            model.save_pretrained(folder)
    return trained


def of_patents(
    rows: int, queries: int, subsets: int, bergson: bool, config: Config, folder: Path, model: Path | None
) -> Iterator[Line]:
    """What is found among real abstracts."""
    trained = fine_tuned(rows, config, model)
    tokens, factors = trained.tokenize(abstracts("eval", queries)), folder / "factors"
    fit, identity = open_fit(trained, folder / "fit")
    fit.covariances()
    fit.eigenvectors(range(len(fit.modules)))
    of_lambda = processor_time(fit.lambdas) / identity.num_examples
    write_factors(fit, identity, factors, {})
    alone = processor_time(lambda: make_index(trained, factors, folder / "index")) / rows
    yield "index pass over the lambda pass, a row", f"{alone / of_lambda:.2f}", "<= 1.3"
    passes = [Scoring(trained, factors, folder / name, queries=tokens, own=True, sketch=sketch)
              for name, sketch in (("without", None), ("with", Sketch.of(config)))]  # fmt: skip
    without, with_codes = (processor_time(one.compute) for one in passes)
    yield "scores, self-influence and codes over the first two", f"{with_codes / without:.2f}", "<= 1.2"
    index, exact = Index.read(folder / "index"), passes[1].joined().numpy()
    yield "bytes an example", f"{index.codes.shape[1]:,}", "<= 2,100"
    top, estimates = best_first(exact, TOP), np.empty_like(exact)
    sketches = passes[1].of_queries(SKETCHES).numpy()
    for row, sketch in enumerate(sketches):
        nearest = index.nearest(sketch, rows)
        estimates[row, nearest.rows] = nearest.scores
    two_steps = estimates.copy()
    yield from of_questions(trained, factors, index, tokens, top, two_steps)
    yield from of_precision(trained, factors, index, tokens, exact)
    with passes[1].tracked() as network:
        loader = Loader(trained.examples, passes[1].batches)
        collector = WhitenedCollector(Whitening(Sketch.of(config)), coded=False)
        known = collect(network, passes[1].task, loader, [collector])[SKETCHES].numpy()
    order = [place for batch in passes[1].batches for place in batch]
    yield from of_lists(known[np.argsort(order)], sketches, top)
    rankings = {"exact": exact, "two steps": two_steps, "codes": estimates}
    if bergson:
        yield from of_bergson(trained, tokens, top, rankings, folder)
    if subsets:
        yield from of_retrainings(trained, tokens, subsets, rankings)


def of_questions(
    trained: TrainedModel, factors: Path, index: Index, tokens: TokenizedExamples, top: np.ndarray, scores: np.ndarray
) -> Iterator[Line]:
    """What one question after another finds, and how long it waits; puts the exact scores among the estimated ones."""
    explainer = Explainer(trained, factors, index)
    explainer.exact(explainer.query(tokens.subset([0])), [0])  # factors are read
    waits, found = [], []
    for row in range(len(tokens)):
        started = clocks()
        query = explainer.query(tokens.subset([row]))
        nearest = index.nearest(query.sketch, CANDIDATES)
        first = clocks() - started
        shown = explainer.exact(query, nearest.rows[:SHOWN])
        then = clocks() - started
        rest = explainer.exact(query, nearest.rows[SHOWN:])
        waits.append([first, then, clocks() - started])
        again = np.concatenate([shown.scores, rest.scores])
        order = nearest.rows[np.argsort(-again)]
        found.append([np.isin(top[row], nearest.rows[:TOP]).mean(), np.isin(top[row], order[:TOP]).mean()])
        scores[row, nearest.rows] = again
    from_codes, rescored = np.mean(found, axis=0)
    yield f"recall@10 from the codes, of {len(index.codes):,} rows", f"{from_codes:.3f}", ">= .85"
    yield f"recall@10 after {CANDIDATES} are scored exactly", f"{rescored:.3f}", ">= .99"
    goals = {
        "first rows after the answer": "<= 0.3 s",
        f"{SHOWN} exact rows with tokens and layers": "<= 1 s",
        f"all {CANDIDATES}": "",
    }
    for (name, goal), (clock, core) in zip(goals.items(), np.percentile(waits, 95, axis=0), strict=True):
        yield f"{name}, p95 (of a core's time)", f"{clock:.2f} ({core:.2f}) s", goal


def of_precision(
    trained: TrainedModel, factors: Path, index: Index, tokens: TokenizedExamples, exact: np.ndarray
) -> Iterator[Line]:
    """How far scores are off that are computed with factors held in bfloat16."""
    serving = trained.config.serving.model_copy(update={"factors_dtype": "bfloat16"})
    config = trained.config.model_copy(update={"serving": serving})
    explainer, rows = (
        Explainer(trained.with_config(config), factors, index),
        range(min(len(index.codes), 4 * CANDIDATES)),
    )
    asked = range(min(len(tokens), 8))
    found = np.stack([explainer.exact(explainer.query(tokens.subset([row])), rows).scores for row in asked])
    off = np.abs(found - exact[: len(asked), : len(rows)]) / exact[: len(asked)].std(axis=1, keepdims=True)
    yield "factors in bfloat16: scores off by, over their spread", f"{off.mean():.1e} ({off.max():.1e})", "mean (most)"


def of_bergson(
    trained: TrainedModel, tokens: TokenizedExamples, top: np.ndarray, rankings: dict[str, np.ndarray], folder: Path
) -> Iterator[Line]:
    """What bergson's stores of projected gradients find, and take; adds their scores to ``rankings``."""
    with Bergson(trained.model, folder, trained.examples, tokens) as other:
        seconds, size = other.store()
        rankings["bergson query"] = other.query().numpy()
        of_trackstar, scores = other.trackstar()
        rankings["bergson trackstar"] = scores.numpy()
    yield (
        "bergson query: seconds of its store, bytes an example",
        f"{seconds:.1f} s, {size // len(trained.examples):,}",
        "",
    )
    yield "bergson trackstar: seconds of everything", f"{of_trackstar:.1f} s", ""
    for name in ("bergson query", "bergson trackstar"):
        shares = [share_found(top, best_first(rankings[name], count)) for count in (TOP, CANDIDATES)]
        yield f"{name}: exact first 10 among its first 10, {CANDIDATES}", " / ".join(f"{it:.3f}" for it in shares), ""


def of_lists(known: np.ndarray, asked: np.ndarray, top: np.ndarray) -> Iterator[Line]:
    """Inverted lists over the sketches of real rows: what is found of the exact first ten, by lists searched."""
    lists = round(math.sqrt(len(known)))
    quantizer, index = inverted_lists(known.shape[1], lists)
    index.train(known)
    index.add(known)
    for probed in sorted({max(1, lists // 8), max(1, lists // 2), lists}):
        index.nprobe = probed
        rows = index.search(asked, TOP)[1]
        share = share_found(top, rows)
        yield f"recall@10 of inverted lists, {probed} of {lists} searched", f"{share:.3f}", ""
    del quantizer


def inverted_lists(dimensions: int, lists: int) -> tuple[Any, Any]:
    """The quantizer, which must live as long, and faiss's inverted lists of one-bit codes."""
    quantizer = faiss.IndexFlatIP(dimensions)
    return quantizer, faiss.IndexIVFRaBitQ(quantizer, dimensions, lists, faiss.METRIC_INNER_PRODUCT)


def of_retrainings(
    trained: TrainedModel, tokens: TokenizedExamples, count: int, scores: dict[str, np.ndarray]
) -> Iterator[Line]:
    """The linear datamodeling score of rankings, over trainings on random halves of the rows."""
    subsets = random_subsets(len(trained.examples), 0.5, count, seed=0)
    outcomes = []
    for subset in subsets:
        model = one_epoch(AutoModelForCausalLM.from_pretrained(LLAMA), trained.examples.subset(list(subset)))
        outcomes.append(answer_logprobs(model, tokens))
    for name, matrix in scores.items():
        found = linear_datamodeling_scores(matrix, subsets, np.stack(outcomes))
        goal = "within .02 of exact" if name == "two steps" else ""
        yield f"LDS over {count} halves, {name}", f"{found.mean():.3f}", goal


def of_generated(rows: int, config: Config) -> Line:
    """How long a search takes among so many codes."""
    sketch, generator = Sketch.of(config), np.random.default_rng(0)
    count = max(1, min(rows, 4000) // BLOCK)
    blocks = [generator.standard_normal((BLOCK, sketch.dimensions), np.float32) for _ in range(count)]
    some = np.concatenate([sketch.encode(torch.from_numpy(block)).numpy() for block in blocks])
    codes = np.resize(some, (rows, some.shape[1]))
    info = IndexInfo(dimensions=sketch.dimensions, bits=sketch.bits, seed=0, rows=rows, model="", tokenizer="",
                     factors="", train_data="", loss_on="", template="", max_length=1, damping_factor=None)  # fmt: skip
    index = Index(info, codes, np.ones(rows, np.float32), data=None)  # type: ignore[arg-type]
    query = blocks[0][0]
    index.nearest(query, CANDIDATES)
    waits = []
    for _ in range(20):
        started = clocks()
        index.nearest(query, CANDIDATES)
        waits.append(clocks() - started)
    clock, of_core = map(in_milliseconds, np.transpose(waits))
    goal = "p95 <= 300 ms" if rows == 1_000_000 else ""
    return f"search of {rows:,} generated codes, p50 / p95 (of a core's time)", f"{clock} ({of_core})", goal


def of_generated_lists(rows: int, config: Config) -> Iterator[Line]:
    """The same in inverted lists, of rows around as many centres as there are lists: growth with rows, and recall.

    Half of the square of a row's length is its centre's. Real rows lie around nothing as clear: see the recall of real
    ones beside.
    """
    dimensions, generator = config.index.dimensions, np.random.default_rng(0)
    lists = round(math.sqrt(rows))
    centres = generator.standard_normal((lists, dimensions), np.float32)
    quantizer, index = inverted_lists(dimensions, lists)
    quantizer.add(centres)
    asked = centres[generator.integers(0, lists, 20)] + generator.standard_normal((20, dimensions), np.float32)
    exact = np.empty((20, rows), np.float32)
    for start in range(0, rows, BLOCK):
        size = min(BLOCK, rows - start)
        block = generator.standard_normal((size, dimensions), np.float32)
        block += centres[generator.integers(0, lists, size)]
        if not index.is_trained:
            index.train(block)
        index.add(block)
        exact[:, start : start + size] = asked @ block.T
    top = best_first(exact, TOP)
    for probed in sorted({1, 8, lists // 2}):
        index.nprobe = probed
        waits, found = [], []
        for row in range(len(asked)):
            query = asked[row : row + 1]
            started = time.process_time()
            near = index.search(query, CANDIDATES)[1][0]
            waits.append(time.process_time() - started)
            found.append([np.isin(top[row], near[:TOP]).mean(), np.isin(top[row], near).mean()])
        first, candidates = np.mean(found, axis=0)
        what = f"{rows:,} generated rows, {probed} of {lists} lists: p50 / p95, recall@10 ({CANDIDATES})"
        yield what, f"{in_milliseconds(waits)}, {first:.2f} ({candidates:.2f})", ""


def clocks() -> np.ndarray:
    """Seconds by the clock, and of a core's time."""
    return np.array([time.perf_counter(), time.process_time()])


def share_found(top: np.ndarray, rows: np.ndarray) -> float:
    """How much of each query's ``top`` examples is among its ``rows``, on average."""
    return float(np.mean([np.isin(first, row).mean() for first, row in zip(top, rows, strict=True)]))


def in_milliseconds(seconds: Sequence[float]) -> str:
    """Median and 95th percentile."""
    return " / ".join(f"{1000 * value:.1f}" for value in np.percentile(seconds, (50, 95))) + " ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1600, help="training abstracts; 0: none")
    parser.add_argument("--queries", type=int, default=64, help="held-out abstracts with their sections")
    parser.add_argument("--factor-rows", type=int, default=200, help="rows the factors are fitted on")
    parser.add_argument("--loss-on", choices=("answer", "all"), default="answer")
    parser.add_argument("--dimensions", type=int, default=16384)
    parser.add_argument("--model", type=Path, help="folder that keeps the fine-tuned model")
    parser.add_argument("--bergson", action="store_true", help="also what bergson's indexes find (installs 1.6 GB)")
    parser.add_argument("--lds", type=int, default=0, help="random halves of the rows to train on, 3 or more")
    parser.add_argument("--scan", type=int, nargs="*", default=[], help="numbers of generated codes to search")
    parser.add_argument("--inverted", type=int, nargs="*", default=[], help="numbers of generated rows in lists")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    config = patent_settings(
        dataset__loss_on=given.loss_on, factors__num_samples=given.factor_rows, index__dimensions=given.dimensions
    )
    started = time.monotonic()

    def tell(what: str, found: str, goal: str) -> None:
        print(f"{what:75} {found:>30}  {goal}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        for rows in given.scan:
            tell(*of_generated(rows, config))
        for rows in given.inverted:
            for line in of_generated_lists(rows, config):
                tell(*line)
        if given.rows:
            with quiet():
                for line in of_patents(
                    given.rows, given.queries, given.lds, given.bergson, config, Path(name), given.model
                ):
                    tell(*line)
    print(f"loss on {given.loss_on}, {given.threads} threads, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
