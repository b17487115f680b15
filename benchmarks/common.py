"""What the benchmarks share: models of a given shape, real patent abstracts where they are, and the clock."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from whence.config import Config
from whence.config_file import parse_config
from whence.data.tokenization import TokenizedExamples, encode
from whence.models.builtin import train_tokenizer
from whence.models.trained import TrainedModel, own_config

SHARED = Path(os.environ.get("WHENCE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LLAMA, PATENTS = SHARED / "models" / "stories260k", SHARED / "data" / "patents"
LONGEST = 512
TAIL = "\n\nQuestion: Which section does this patent belong to?\nAnswer:"


def abstracts(split: str, count: int, skip: int = 0) -> pd.DataFrame:
    """Real patent abstracts with a question, and their sections as answers."""
    with open(PATENTS / f"{split}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, skip, skip + count)]
    return pd.DataFrame({"prompt": [row["abstract"] + TAIL for row in rows],
                         "completion": [row["section"] for row in rows]})  # fmt: skip


def patent_settings(**overrides: Any) -> Config:
    """The settings for these, with ``overrides`` by dotted key, dots written as double underscores."""
    own = {"general.max_length": LONGEST, "general.device": "cpu", "dataset.template": "{input}" + TAIL}
    return own_config(own | {key.replace("__", "."): value for key, value in overrides.items()})


def processor_time(work: Callable[[], object]) -> float:
    """Seconds of the processor, which other work on the machine does not lengthen."""
    started = time.process_time()
    work()
    return time.process_time() - started


@dataclass(frozen=True)
class Shape:
    """A Llama's size."""

    width: int
    mlp: int
    layers: int
    vocabulary: int = 4096
    heads: int = 4
    key_value_heads: int = 4

    def __str__(self) -> str:
        return f"width {self.width}, MLP {self.mlp}, {self.layers} layers"


NARROW = Shape(width=256, mlp=704, layers=4)
WIDE = Shape(width=1024, mlp=2816, layers=2, heads=16, key_value_heads=16)


def make_model(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LlamaForCausalLM:
    """A Llama with seeded random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocabulary,
                hidden_size=shape.width,
                intermediate_size=shape.mlp,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.key_value_heads,
                max_position_embeddings=2 * LONGEST,
                pad_token_id=0,
            )
        )
    return model.to(dtype).eval()


def texts(count: int) -> tuple[list[tuple[str, str]], str]:
    """Pairs of text and label, and where they are from."""
    path = SHARED / "patents" / "train.jsonl"
    path = path if path.exists() else SHARED / "data" / "patents" / "train.jsonl"
    if path.exists():
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
        return [(row["abstract"], row["section"]) for row in rows], "real patent abstracts"
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(3, 9))) for _ in range(2000)]
    made = [" ".join(generator.choices(words, k=int(generator.lognormvariate(4.6, 0.5)))) for _ in range(count)]
    return [(text, generator.choice("ABCDEFGH")) for text in made], "random words (no real data at hand)"


def examples(count: int, vocabulary: int) -> tuple[TokenizedExamples, str]:
    """Abstracts with a question and the section as answer, whose loss counts."""
    rows, source = texts(max(count, 2000))
    tokenizer: PreTrainedTokenizerBase = train_tokenizer([text for text, _ in rows], vocabulary)
    encoded = [encode(tokenizer, text + TAIL, label, LONGEST, tail=TAIL) for text, label in rows[:count]]
    return TokenizedExamples(encoded, 0), source


def blank_tokenizer(name: str = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer for examples that are made of token ids: it pads with 0."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, name: 1}))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=name)


def trained(model: PreTrainedModel, examples: TokenizedExamples, config: Config) -> TrainedModel:
    """A model with examples that are made of token ids."""
    return TrainedModel(model, blank_tokenizer(), config, examples)


def settings(**overrides: Any) -> Config:
    """A configuration with ``overrides`` by dotted key, dots written as double underscores."""
    text = (
        "{models: {base: {name: builtin:tiny-llama}}, dataset: {name: builtin:demo}, prompts: {items: [x]},"
        f" general: {{max_length: {LONGEST}}}}}"
    )
    return parse_config(text, {key.replace("__", "."): value for key, value in overrides.items()})


def mlp_modules(shape: Shape) -> list[str]:
    return [
        f"model.layers.{layer}.mlp.{name}"
        for layer in range(shape.layers)
        for name in ("gate_proj", "up_proj", "down_proj")
    ]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def matrix_throughput(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", size: int = 4096
) -> float:
    """Operations a second of the best of some large products in ``dtype`` on ``device``."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        left @ right
        if left.device.type == "cuda":
            torch.cuda.synchronize(device)

    product()
    return 2 * size**3 / min(timed(product)[0] for _ in range(5))


@contextlib.contextmanager
def quiet() -> Any:
    """Without the progress bars of what is measured."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
