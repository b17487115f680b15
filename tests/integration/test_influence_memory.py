"""The memory plan against the memory taken: each phase in a process of its own, on work that dwarfs the interpreter."""

from __future__ import annotations

import re
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from influence_helpers import trained
from influence_jobs import make_examples, make_llama, settings
from jobs import Job
from transformers import LlamaForCausalLM

from whence.config import Config
from whence.influence import memory
from whence.influence.detail import divide_scores
from whence.influence.factors import fit_factors
from whence.influence.modules import select_modules
from whence.influence.scores import pairwise_scores, self_influence
from whence.influence.scoring import Scoring
from whence.influence.sketch import Sketch
from whence.influence.tracked import module_shapes

TOLERANCE = 0.25
RANK = 16


class Work(NamedTuple):
    """Sizes of a model, and of the batches it is given."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    length: int
    batch: int
    counted: int  # tokens of an example whose loss counts


TINY = Work(64, 32, 64, 1, 64, 8, 2)
LONG = Work(2000, 256, 1024, 2, 512, 16, 8)  # mostly activations
WIDE = Work(1000, 512, 1024, 8, 64, 4, 8)  # mostly weights and factors
LOGITS = Work(16000, 128, 256, 2, 128, 16, 127)  # mostly logits, as where the loss counts everywhere

FIT, FULL_RANK, LOW_RANK, DETAIL, SELF = "fit", "pairwise", "pairwise, low rank", "detail", "self-influence"
EVERYTHING = "scores, self-influence, codes and baselines"


# The gradients of many queries are a good part of what these take; elsewhere more of them would only take time.
QUERIES = {FULL_RANK: 64, EVERYTHING: 64}
FEW = 16

CASES = [
    (FIT, LONG), (FIT, WIDE), (FIT, LOGITS), (FULL_RANK, LONG), (LOW_RANK, LONG), (LOW_RANK, WIDE), (DETAIL, LONG),
    (SELF, LONG), (EVERYTHING, LONG),
]  # fmt: skip


def measure(connection: Connection, what: str, work: Work, factors: Path, scratch: Path) -> None:
    """Send the peak above what the process holds before its model is made, and what was planned, in bytes."""
    for warm in (FIT, what):  # so that code is loaded and counts before
        run(warm, TINY, scratch / "warm" / "factors", scratch / "warm")
    before = psutil.Process().memory_info().rss
    planned = run(what, work, factors, scratch)
    connection.send((peak_resident() - before, planned))


def peak_resident() -> int:
    """Bytes. Not ``ru_maxrss``, which begins with what the parent process held when it forked."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def run(what: str, work: Work, factors: Path, scratch: Path) -> int:
    """Make a model and do the work; returns the bytes planned for its worst phase."""
    model, count = make_llama(work.vocabulary, work.width, work.inner, work.layers), QUERIES.get(what, FEW)
    config = settings(
        general__max_length=work.length,
        factors__batch_size=work.batch,
        scores__train_batch_size=work.batch,
        scores__query_batch_size=work.batch,
        scores__query_gradient_accumulation_steps=count // work.batch,
        **({"scores__query_gradient_low_rank": RANK} if what == LOW_RANK else {}),
    )
    train, queries = (
        make_examples(number, work.vocabulary, work.length, work.length, seed, work.counted)
        for number, seed in ((2 * work.batch, 1), (count, 2))
    )
    if what == FIT:
        fit_factors(trained(model, train, config), factors)
    elif what == SELF:
        self_influence(trained(model, train, config), factors, scratch)
    elif what == EVERYTHING:
        model_and_rows, sketch = trained(model, train, config), Sketch.of(config)
        Scoring(model_and_rows, factors, scratch, queries=queries, sketch=sketch, baselines=True).compute()
    elif what == DETAIL:
        scoring = Scoring(trained(model, train, config), factors, scratch, queries=queries)
        divide_scores(scoring, [(query, example) for query in range(len(queries)) for example in range(len(train))])
    else:
        pairwise_scores(trained(model, train, config), factors, queries, scratch)
    return plan(what, work, model, config)


def plan(what: str, work: Work, model: LlamaForCausalLM, config: Config) -> int:
    shapes = module_shapes(model, select_modules(model, config.factors))
    tokens, logit_tokens = work.batch * work.length, work.batch * work.counted
    if what == FIT:
        phases = memory.FitPhases(model, shapes, "ekfac", tokens, logit_tokens)
        found = (phases.covariance(1), phases.eigendecomposition(), phases.lambdas(1))
        return max(phase.total for phase in found if phase is not None)
    if what == SELF:
        return memory.score_phase(model, shapes, tokens, 0, None, 0, logit_tokens, strategy="ekfac").total
    rank, held, more = config.scores.query_gradient_low_rank, QUERIES.get(what, FEW), {}
    if what == EVERYTHING:
        held *= 2  # plain gradients beside the preconditioned ones
        more = {"strategy": "ekfac", "sketches": work.batch * config.index.dimensions}
    return memory.score_phase(model, shapes, tokens, held, rank, work.batch, logit_tokens, **more).total


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Work], tuple[int, int]]:
    folder, results = tmp_path_factory.mktemp("memory"), {}
    for number, (what, work) in enumerate(CASES):
        job = Job(measure, what, work, folder / f"factors of {work.length}", folder / str(number))
        results[what, work] = job.receive()
        assert job.join() == 0
    return results


@pytest.mark.parametrize(("what", "work"), CASES)
def test_the_plan_is_within_a_quarter_of_the_measured_peak(measured, what, work) -> None:
    peak, planned = measured[what, work]
    assert peak > 250 << 20  # enough for the interpreter's own memory not to matter
    assert planned == pytest.approx(peak, rel=TOLERANCE), f"{planned >> 20} MiB planned, {peak >> 20} MiB taken"
