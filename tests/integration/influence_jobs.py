"""Fits and scores in processes of their own, started from a server that has imported everything already."""

from __future__ import annotations

import gc
import json
import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from whence.config import Config
from whence.config_file import parse_config
from whence.data.tokenization import IGNORED, Encoded, TokenizedExamples

PAD = 0
SETTINGS = {
    "models": {"base": {"name": "builtin:tiny-llama"}},
    "dataset": {"name": "builtin:demo"},
    "prompts": {"items": ["x"]},
    "generation": {"max_new_tokens": 1},
    "general": {"device": "cpu"},
}

# A process forked from a server that holds the imports starts in milliseconds, where a new interpreter takes seconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["whence.influence.scores", "kronfluence.analyzer", "transformers.models.llama.modeling_llama"]
)


class Job:
    """A function running in a process of its own; it is given a connection as its first argument."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self.connection, theirs = _processes.Pipe()
        self.process: ForkServerProcess = _processes.Process(target=_run, args=(function, theirs, arguments))
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def receive(self) -> Any:
        """What the function sends next.

        Raises:
            EOFError: the process ended without.
        """
        return self.connection.recv()

    def kill(self) -> bool:
        """``kill -9``; whether it came before the function was done."""
        self.process.kill()
        return self.join() != 0

    def join(self) -> int:
        self.process.join()
        self.connection.close()
        code = self.process.exitcode
        assert code is not None
        return code


def _run(function: Callable[..., None], connection: Connection, arguments: tuple[Any, ...]) -> None:
    gc.freeze()  # kronfluence collects garbage after every pass, and would search all that was imported every time
    tqdm.set_lock(threading.RLock())  # its own takes a semaphore of the system, which a killed process leaves there
    torch.set_num_threads(1)
    function(connection, *arguments)


def settings(**overrides: Any) -> Config:
    """A configuration with ``overrides`` by dotted key, dots written as double underscores."""
    return parse_config(json.dumps(SETTINGS), {key.replace("__", "."): value for key, value in overrides.items()})


def make_llama(vocabulary: int, width: int, inner: int, layers: int) -> LlamaForCausalLM:
    """A Llama with seeded random weights, the same in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def make_examples(
    count: int, vocabulary: int, shortest: int, longest: int, seed: int, counted: int
) -> TokenizedExamples:
    """Random tokens of differing lengths, the loss counting on the last ``counted``."""
    generator = torch.Generator().manual_seed(seed)
    encoded = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        ids = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        encoded.append(Encoded(ids, [IGNORED] * (length - counted) + ids[-counted:], 0))
    return TokenizedExamples(encoded)
