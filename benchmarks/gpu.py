"""How fast Whence fits and scores a model of TinyLlama's size, phase by phase, and what share of the device that is.

On a machine with a GPU, in the environment that ``make setup`` makes with a CUDA build of torch:

    python benchmarks/gpu.py                         # 1.1 billion random weights in bfloat16, about 30 GB of disk
    python benchmarks/gpu.py --layers 4 --compile    # shorter; untracked parts of the model through torch.compile
    python benchmarks/gpu.py --small                 # anywhere, in seconds: that everything runs, not how fast

Everything is run twice (with ``--compile`` three times). The first run warms the device up and counts the operations of
every phase (torch's ``FlopCounterMode``, which slows what it counts; eigenvectors are not computed in it); the last is
the one measured. The share is that of the device's matrix throughput in the model's precision, measured in the same
process. Operations counted are those really done, so a phase that finds a cheaper way does not look better for it.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import Shape, examples, make_model, matrix_throughput, quiet, settings, trained
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from whence.config import Config
from whence.data.tokenization import TokenizedExamples
from whence.influence import scoring
from whence.influence.factors import fit_factors
from whence.influence.fit import Fit
from whence.models.loading import choose_device, choose_dtype
from whence.threads import available_cpus

PAD = 0
TINYLLAMA = {"width": 2048, "mlp": 5632, "layers": 22, "heads": 32, "key_value_heads": 4, "vocabulary": 32000}
SMALL = {"width": 64, "mlp": 176, "layers": 2, "heads": 4, "key_value_heads": 2, "vocabulary": 512}
PHASES = {
    "covariance": (Fit, "covariances"),
    "eigendecomposition": (Fit, "eigenvectors"),
    "lambda": (Fit, "lambdas"),
    "query gradients": (scoring.Scoring, "_query_gradients"),
    "scores and self-influence": (scoring.Scoring, "_examples"),
}


@dataclass
class Meter:
    """What each phase took: seconds, bytes at its peak, and operations."""

    device: torch.device
    rehearsal: bool = False  # without eigenvectors, which neither warm up nor count
    counting: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    peak: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    operations: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure the phases wherever they are run."""
        with ExitStack() as stack:
            for phase, (owner, name) in PHASES.items():
                stack.enter_context(patch.object(owner, name, self._measured(phase, getattr(owner, name))))
            if self.rehearsal:
                stack.enter_context(patch("whence.influence.fit.symmetric_eigen", no_eigen))
            yield

    def _measured(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            reset_peak(self.device)
            started = self._now()
            with FlopCounterMode(display=False) if self.counting else nullcontext() as counted:
                result = method(*args, **kwargs)
            self.seconds[phase] += self._now() - started
            self.peak[phase] = max(self.peak[phase], peak_bytes(self.device))
            self.operations[phase] += counted.get_total_flops() if counted else 0
            return result

        return call

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def no_eigen(matrix: torch.Tensor, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of the eigendecomposition in rehearsals, whose operations do not depend on its values."""
    return matrix.diagonal().clone(), torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the resident peak starts anew


def peak_bytes(device: torch.device) -> int:
    """Most bytes held since the last reset: tensors on a GPU, else all that the process has resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def run_all(
    model: LlamaForCausalLM, train: TokenizedExamples, queries: TokenizedExamples, config: Config, meter: Meter
) -> int:
    """Fit and scores under the meter; the number of tracked modules."""
    with tempfile.TemporaryDirectory() as name, meter.watching(), quiet():
        folder = Path(name)
        info = fit_factors(trained(model, train, config), folder / "factors")
        work = trained(model, train, config)
        scoring.Scoring(work, folder / "factors", folder / "parts", queries=queries, own=True).compute()
    return len(info.modules)


def compile_untracked(model: LlamaForCausalLM) -> None:
    """Compile attention and norms; the MLP's layers are tracked, and hooks would break the graph at each of them."""
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm):
            part.compile(dynamic=True)


def table(
    meter: Meter, counted: Meter, modules: int, train_tokens: int, query_tokens: int, most: float
) -> Iterator[str]:
    """One line per phase."""
    yield "| phase | seconds | rate | peak memory | reached | of the matrix product |"
    yield "|---|---|---|---|---|---|"
    work = dict.fromkeys(PHASES, (train_tokens, "tokens/s"))
    work |= {"eigendecomposition": (modules, "modules/s"), "query gradients": (query_tokens, "tokens/s")}
    for phase, (amount, unit) in work.items():
        seconds = meter.seconds[phase]
        reached = counted.operations[phase] / seconds
        # The solver's operations are not counted, and they are in fp64.
        of_device = f"{reached / 1e9:.2f} GFLOP/s | {reached / most:.2%}" if phase != "eigendecomposition" else "- | -"
        rate = f"{amount / seconds:,.{0 if amount > 100 * seconds else 2}f} {unit}"
        yield f"| {phase} | {seconds:.4g} | {rate} | {meter.peak[phase] / 2**30:.3f} GiB | {of_device} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny model, for a look anywhere")
    for name in TINYLLAMA:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {TINYLLAMA[name]}")
    parser.add_argument("--examples", type=int, help="training examples (default 512)")
    parser.add_argument("--queries", type=int, help="default 8; each takes 3 GB at full size without --low-rank")
    parser.add_argument("--low-rank", type=int, help="rank of the query gradients; default full")
    parser.add_argument("--batch-size", type=int, default=8, help="examples of 512 tokens per batch, fit and scores")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile what is not tracked")
    parser.add_argument("--threads", type=int, default=available_cpus())
    given = parser.parse_args()
    defaults = (SMALL if given.small else TINYLLAMA) | {
        "examples": 16 if given.small else 512,
        "queries": 4 if given.small else 8,
    }
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    logging.disable(logging.WARNING)
    config = settings(
        general__device=given.device,
        general__dtype=given.dtype,
        factors__batch_size=given.batch_size,
        scores__train_batch_size=given.batch_size,
        scores__query_gradient_low_rank=given.low_rank,
    )
    device = choose_device(config.general)
    dtype = choose_dtype(config.general, device)
    shape = Shape(**{name: getattr(given, name) for name in TINYLLAMA})
    both, source = examples(given.examples + given.queries, shape.vocabulary)
    train, queries = both.subset(range(given.examples)), both.subset(range(given.examples, len(both)))
    model = make_model(shape, dtype, str(device))
    if given.compile:
        compile_untracked(model)
        # kronfluence throws away all that is compiled whenever it releases memory, so each phase would compile anew.
        torch.compiler.reset = lambda: None
    of_device = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {given.threads} threads"
    print(f"{of_device}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}, {shape},")
    heads = f"{shape.heads} heads ({shape.key_value_heads} key-value), vocabulary {shape.vocabulary}"
    attention = model.config._attn_implementation
    print(
        f"{heads}, attention: {attention}, torch.compile: {'attention and norms' if given.compile else 'no'}, {source}:"
    )
    print(f"{len(train)} examples, {sum(train.lengths)} tokens; {len(queries)} queries")
    counted, measured = Meter(device, rehearsal=True, counting=True), Meter(device)
    run_all(model, train, queries, config, counted)
    if given.compile:  # nothing is compiled under the counter
        run_all(model, train, queries, config, Meter(device, rehearsal=True))
    most = matrix_throughput(dtype, device, size=1024 if given.small else 4096)
    modules = run_all(model, train, queries, config, measured)
    print(f"matrix product: {most / 1e9:.1f} GFLOP/s\n")
    for line in table(measured, counted, modules, sum(train.lengths), sum(queries.lengths), most):
        print(line)


if __name__ == "__main__":
    main()
