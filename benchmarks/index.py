"""The index beside exact EKFAC: what its codes find, what an example takes, and how long a question waits.

``python benchmarks/index.py --rows 1600`` fits, scores and indexes real patent abstracts under the small pretrained
Llama, after an epoch of training on them, and prints one line per figure. ``--scan 16000 100000 1000000`` also searches
so many generated codes. Real data are looked for where ``WHENCE_SHARED`` says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import SHARED, TAIL, quiet
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence.config import Config
from whence.influence.explain import Explainer
from whence.influence.factors import open_fit, write_factors
from whence.influence.index import TOP, Index, IndexInfo
from whence.influence.ranking import best_first
from whence.influence.scores import make_index
from whence.influence.scoring import Scoring
from whence.influence.sketch import Sketch
from whence.models.trained import TrainedModel, own_config

MODEL, PATENTS = SHARED / "models" / "stories260k", SHARED / "data" / "patents"
CANDIDATES = 50  # scored exactly
Line = tuple[str, str, str]  # what, found, goal


def processor_time(work: Callable[[], object]) -> float:
    """Seconds of the processor, which other work on the machine does not lengthen."""
    started = time.process_time()
    work()
    return time.process_time() - started


def abstracts(split: str, count: int) -> pd.DataFrame:
    with open(PATENTS / f"{split}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
    return pd.DataFrame({"prompt": [row["abstract"] + TAIL for row in rows],
                         "completion": [row["section"] for row in rows]})  # fmt: skip


def fine_tuned(rows: int, config: Config, folder: Path | None) -> TrainedModel:
    """The pretrained Llama after an epoch on the rows, kept in ``folder``."""
    tokenizer, kept = AutoTokenizer.from_pretrained(MODEL), folder is not None and (folder / "config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder if kept else MODEL)
    trained = TrainedModel.of(model, tokenizer, abstracts("train", rows), config)
    if not kept:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tolist()
        for start in range(0, rows, 8):
            model(**trained.examples.batch(order[start : start + 8])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if folder is not None:
            model.save_pretrained(folder)
    model.eval()
    return trained


def of_patents(rows: int, queries: int, config: Config, folder: Path, model: Path | None) -> Iterator[Line]:
    """What is found among real abstracts."""
    trained = fine_tuned(rows, config, model)
    asked = abstracts("eval", queries)
    tokens, factors = trained.tokenize(asked), folder / "factors"
    fit, identity = open_fit(trained, folder / "fit")
    fit.covariances()
    fit.eigenvectors()
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
    explainer = Explainer(trained, factors, index)
    explainer.exact(explainer.query(tokens.subset([0])), [0])  # factors are read
    top, waits, found = best_first(exact, TOP), [], []
    for row in range(queries):
        started = np.array([time.perf_counter(), time.process_time()])
        query = explainer.query(tokens.subset([row]))
        nearest = index.nearest(query.sketch, CANDIDATES)
        first = np.array([time.perf_counter(), time.process_time()]) - started
        again = explainer.exact(query, nearest.rows)
        waits.append([first, np.array([time.perf_counter(), time.process_time()]) - started])
        order = nearest.rows[np.argsort(-again.scores)]
        found.append([np.isin(top[row], nearest.rows[:TOP]).mean(), np.isin(top[row], order[:TOP]).mean()])
    from_codes, rescored = np.mean(found, axis=0)
    yield f"recall@10 from the codes, of {rows:,} rows", f"{from_codes:.3f}", ">= .85"
    yield f"recall@10 after {CANDIDATES} are scored exactly", f"{rescored:.3f}", ">= .99"
    what = "first rows after the answer", f"{CANDIDATES} exact rows with tokens and layers"
    for name, (clock, core), goal in zip(what, np.percentile(waits, 95, axis=0), ("<= 0.3 s", "<= 1 s"), strict=True):
        yield f"{name}, p95 (of a core's time)", f"{clock:.2f} ({core:.2f}) s", goal


def of_generated(rows: int, config: Config) -> Line:
    """How long a search takes among so many codes."""
    sketch, generator = Sketch.of(config), np.random.default_rng(0)
    blocks = [generator.standard_normal((1000, sketch.dimensions), np.float32) for _ in range(min(rows, 4000) // 1000)]
    some = np.concatenate([sketch.encode(torch.from_numpy(block)).numpy() for block in blocks])
    codes = np.resize(some, (rows, some.shape[1]))
    info = IndexInfo(dimensions=sketch.dimensions, bits=sketch.bits, seed=0, rows=rows, model="", tokenizer="",
                     factors="", train_data="", loss_on="", template="", max_length=1, damping_factor=None)  # fmt: skip
    index = Index(info, codes, np.ones(rows, np.float32), data=None)  # type: ignore[arg-type]
    query = blocks[0][0]
    index.nearest(query, CANDIDATES)
    waits = [processor_time(lambda: index.nearest(query, CANDIDATES)) for _ in range(20)]
    goal = "<= 300 ms" if rows == 1_000_000 else ""
    took = 1000 * np.percentile(waits, 95)
    return f"search of {rows:,} generated codes, p95 of a core's time", f"{took:.1f} ms", goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1600, help="training abstracts; 0: none")
    parser.add_argument("--queries", type=int, default=64, help="held-out abstracts with their sections")
    parser.add_argument("--factor-rows", type=int, default=200, help="rows the factors are fitted on")
    parser.add_argument("--loss-on", choices=("answer", "all"), default="answer")
    parser.add_argument("--dimensions", type=int, default=16384)
    parser.add_argument("--model", type=Path, help="folder that keeps the fine-tuned model")
    parser.add_argument("--scan", type=int, nargs="*", default=[], help="numbers of generated codes to search")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = own_config({
        "general.max_length": 512, "general.device": "cpu", "dataset.template": "{input}" + TAIL,
        "dataset.loss_on": given.loss_on, "factors.num_samples": given.factor_rows,
        "index.dimensions": given.dimensions,
    })  # fmt: skip
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        lines = [of_generated(rows, config) for rows in given.scan]
        if given.rows:
            with quiet():
                lines += of_patents(given.rows, given.queries, config, Path(name), given.model)
    for what, found, goal in lines:
        print(f"{what:62} {found:>16}  {goal}")
    print(f"loss on {given.loss_on}, {given.threads} threads, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
