"""A fit or a scoring that is killed goes on where it was, and ends in the very bits of one that was not."""

from __future__ import annotations

import os
import random
import shutil
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from influence_helpers import trained
from influence_jobs import make_examples, make_llama, settings
from jobs import Job
from safetensors.torch import load_file, save_file

from whence.influence.factors import fit_factors
from whence.influence.scores import pairwise_scores, self_influence

VOCABULARY = 61
FIT, PAIRWISE, SELF = CALLS = "fit", "pairwise", "self-influence"
KILLS = {FIT: 5, PAIRWISE: 3, SELF: 2}
MISSES = 20  # runs that may be done before their kill comes; the machine's speed is not the test's

CONFIG = settings(
    general__max_length=24,
    factors__batch_size=2,
    factors__data_partitions=4,
    factors__covariance_module_partitions=2,
    factors__lambda_module_partitions=2,
    scores__train_batch_size=2,
    scores__query_batch_size=2,
    scores__query_gradient_accumulation_steps=1,  # several groups of queries, each with parts of its own
    scores__query_gradient_low_rank=6,  # which draws random numbers
    scores__data_partitions=4,
)

Artifacts = dict[str, dict[str, torch.Tensor]]


def work(connection: Connection, call: str, folder: Path) -> None:
    """One of the calls, from the model's making on; sends a word when it begins and when it is done."""
    model = make_llama(VOCABULARY, width=48, inner=80, layers=3)
    train = make_examples(240, VOCABULARY, shortest=8, longest=24, seed=1, counted=4)
    queries = make_examples(6, VOCABULARY, shortest=8, longest=24, seed=2, counted=4)
    connection.send("begins")
    factors, scores = folder / "factors", folder / "scores"
    if call == FIT:
        fit_factors(trained(model, train, CONFIG), factors)
    else:
        if call == PAIRWISE:
            values = pairwise_scores(trained(model, train, CONFIG), factors, queries, scores)
        else:
            values = self_influence(trained(model, train, CONFIG), factors, scores)
        save_file({"scores": values}, folder / f"{call}.safetensors")
    connection.send("done")


def begin(call: str, folder: Path) -> Job:
    job = Job(work, call, folder)
    assert job.receive() == "begins"
    return job


def finish(call: str, folder: Path) -> None:
    job = begin(call, folder)
    assert job.receive() == "done"
    assert job.join() == 0


def parts_of(folder: Path) -> set[Path]:
    """The safetensors files below ``folder``, whatever their names; it may be changing."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return {file for file in files if file.suffix == ".safetensors" and not file.name.startswith(".")}


class Reference:
    """An uninterrupted run: what it leaves, how long every call took, and how many parts it finished on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self.parts = folder, {}, {}
        for call in CALLS:
            before, seen = parts_of(folder), set()
            job, started = begin(call, folder), time.monotonic()
            while not job.connection.poll(0.005):
                seen |= parts_of(folder) - before
            self.seconds[call] = time.monotonic() - started
            assert job.receive() == "done"
            assert job.join() == 0
            self.parts[call] = len(seen - parts_of(folder))
        self.artifacts = artifacts(folder)

    def start_of(self, call: str, folder: Path) -> Path:
        """Make ``folder`` what the call finds when it is made for the first time."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if call != FIT:
            shutil.copytree(self.folder / "factors", folder / "factors")
        return folder

    def require_same(self, call: str, folder: Path) -> None:
        """The call left the same artifacts in ``folder`` and nothing else, in the same bits."""
        made = "factors/" if call == FIT else call
        expected = {name: tensors for name, tensors in self.artifacts.items() if name.startswith(made)}
        found = {name: tensors for name, tensors in artifacts(folder).items() if name.startswith(made)}
        assert found.keys() == expected.keys()
        for name, tensors in expected.items():
            assert found[name].keys() == tensors.keys()
            for key, tensor in tensors.items():
                assert found[name][key].dtype == tensor.dtype
                assert found[name][key].numpy().tobytes() == tensor.numpy().tobytes(), f"{key} of {name} differs"


def artifacts(folder: Path) -> Artifacts:
    return {str(file.relative_to(folder)): load_file(file) for file in parts_of(folder)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("call", CALLS)
def test_work_that_is_killed_again_and_again_ends_in_the_same_bits(reference, tmp_path, call) -> None:
    chance = random.Random(call)
    folder, killed, missed = reference.start_of(call, tmp_path / "0"), 0, 0
    while killed < KILLS[call]:
        job = begin(call, folder)
        # As the kills follow each other they meet every phase of the work, for what was finished is not done again.
        time.sleep(chance.uniform(0.5, 1.5) * reference.seconds[call] / KILLS[call] * 0.9**missed)
        if job.kill():
            killed += 1
            continue
        reference.require_same(call, folder)  # done before the kill came: once more from the start
        missed += 1
        assert missed < MISSES
        folder = reference.start_of(call, tmp_path / str(missed))
    finish(call, folder)
    reference.require_same(call, folder)


@pytest.mark.parametrize(
    ("call", "moment"), [(FIT, 0.3), (FIT, 0.6), (FIT, 0.9), (PAIRWISE, 0.3), (PAIRWISE, 0.9), (SELF, 0.6)]
)
def test_parts_that_were_damaged_after_a_crash_are_made_anew(reference, tmp_path, call, moment) -> None:
    """Every part there is damaged, so that the use of any of them would show in the result."""
    folder = reference.start_of(call, tmp_path / "damaged")
    before = parts_of(folder)
    for _ in range(MISSES):
        job, seen = begin(call, folder), set()
        while len(seen) < moment * reference.parts[call] and not job.connection.poll(0.005):
            seen |= parts_of(folder) - before
        if job.kill():
            break
        folder = reference.start_of(call, folder)  # done before the kill came
    damaged = sorted(parts_of(folder) - before)
    assert damaged
    for number, part in enumerate(damaged):
        (truncate, alter)[number % 2](part)
    finish(call, folder)
    reference.require_same(call, folder)


def truncate(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-7])


def alter(part: Path) -> None:
    """Flip a bit of the exponent of some fp32 numbers; the header stays valid."""
    content = bytearray(part.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start + 3, len(content), 64):
        content[place] ^= 0x20
    part.write_bytes(content)
