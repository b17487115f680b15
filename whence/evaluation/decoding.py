"""Batched decoding that reads every prompt once: its cached keys and values serve ranking and generation alike.

A batch is padded on the left, so that all prompts end at the same place; padding is masked out and positions are
counted without it, which makes the result that of each prompt alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer

from whence.config import Generation
from whence.models.forward import accepted
from whence.models.language import LanguageModel

Completion = tuple[int, ...]


@dataclass(frozen=True)
class Prefix:
    """A batch of prompts as read by the model.

    ``input_ids`` and ``attention_mask`` are ``[batch, longest]``, padded on the left; ``cache`` holds every token but
    the last, whose logits are the first that count (None when there is just one token).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cache: Cache | None


@dataclass(frozen=True)
class Generated:
    """An answer exactly as the model gave it.

    Attributes:
        token_ids: all its tokens, the last being an end-of-text token if the model produced one.
        finished: whether it did; otherwise the answer was cut off.
        mean_logprob: mean log-probability of these tokens.
    """

    token_ids: list[int]
    finished: bool
    mean_logprob: float

    @property
    def text_ids(self) -> list[int]:
        """The tokens without the end-of-text token."""
        return self.token_ids[:-1] if self.finished else self.token_ids

    @property
    def ended(self) -> str:
        """How the answer ended, in words."""
        if not self.finished:
            return "cut off"
        return "end of text" if self.text_ids else "empty"


@torch.inference_mode()
def read_prompts(language: LanguageModel, prompts: Sequence[Sequence[int]]) -> Prefix:
    """Run the model over a batch of prompts (token ids, none of them empty)."""
    longest = max(len(ids) for ids in prompts)
    padding = [longest - len(ids) for ids in prompts]
    rows = [[language.pad_token_id] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)]
    input_ids = torch.tensor(rows, device=language.device)
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=language.device)
    cache = None
    if longest > 1:
        cache = language.model(
            input_ids=input_ids[:, :-1],
            attention_mask=mask[:, :-1],
            use_cache=True,
            **accepted(language.model, position_ids=_positions(mask)[:, :-1], logits_to_keep=1),
        ).past_key_values
    return Prefix(input_ids, mask, cache)


@torch.inference_mode()
def completion_logprobs(language: LanguageModel, prefix: Prefix, completions: Sequence[Completion]) -> torch.Tensor:
    """Summed log-probability of each completion after each prompt: float32 on the CPU, ``[batch, completions]``.

    Completions that differ in their last token only (such as the letters of a multiple-choice question) share one
    forward pass; each pass reads the completion's tokens alone, with the prompt from the cache.
    """
    totals = torch.empty(len(prefix.input_ids), len(completions))
    by_stem: dict[Completion, list[int]] = {}
    for index, completion in enumerate(completions):
        by_stem.setdefault(completion[:-1], []).append(index)
    for stem, members in by_stem.items():
        logprobs = _logits_after(language, prefix, stem).float().log_softmax(-1)  # [batch, 1 + stem, vocabulary]
        read = logprobs[:, range(len(stem)), list(stem)].sum(1, keepdim=True)
        last = logprobs[:, -1, [completions[index][-1] for index in members]]
        totals[:, members] = (read + last).cpu()
    return totals


def _logits_after(language: LanguageModel, prefix: Prefix, stem: Completion) -> torch.Tensor:
    """Logits at the prompt's last token and at each token of ``stem`` after it."""
    batch = len(prefix.input_ids)
    added = torch.tensor([stem] * batch, dtype=torch.long, device=language.device).reshape(batch, len(stem))
    mask = torch.cat([prefix.attention_mask, torch.ones_like(added)], dim=1)
    input_ids = torch.cat([prefix.input_ids[:, -1:], added], dim=1)
    # A forward pass grows the cache it is given. A copy is right for every kind of cache; cropping is not.
    logits: torch.Tensor = language.model(
        input_ids=input_ids,
        attention_mask=mask,
        past_key_values=copy.deepcopy(prefix.cache),
        use_cache=True,
        **accepted(language.model, position_ids=_positions(mask)[:, -input_ids.shape[1] :]),
    ).logits
    return logits


@torch.inference_mode()
def continue_prompts(
    language: LanguageModel, prefix: Prefix, settings: Generation, streamer: BaseStreamer | None = None
) -> list[Generated]:
    """Answers of at most ``settings.max_new_tokens`` tokens, one per prompt. Uses the prefix up.

    Sampling draws from torch's global generator; log-probabilities are the model's own, before temperature and top-p.

    Args:
        streamer: is given the tokens of a single prompt's answer as they come.
    """
    ends = _end_tokens(language)
    logprobs = _TokenLogprobs()
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.do_sample else {}
    with _settings_of_the_checkpoint_ignored(language.model):
        generate: Any = language.model.generate  # nn.Module's types take it for a tensor
        output = generate(
            input_ids=prefix.input_ids,
            attention_mask=prefix.attention_mask,
            past_key_values=prefix.cache,
            logits_processor=LogitsProcessorList([logprobs]),
            streamer=streamer,
            generation_config=GenerationConfig(
                max_new_tokens=settings.max_new_tokens,
                do_sample=settings.do_sample,
                eos_token_id=ends,
                pad_token_id=language.pad_token_id,
                **sampling,
            ),
        )
    new = output[:, prefix.input_ids.shape[1] :]
    is_end = torch.isin(new, torch.tensor(ends, device=new.device))
    counts = is_end.long().cumsum(1) - is_end.long() == 0  # up to the first end token, that included
    means = (logprobs.of(new) * counts).sum(1) / counts.sum(1)
    finished = (counts & is_end).any(1)
    return [
        Generated(new[row][counts[row]].tolist(), bool(finished[row]), float(means[row])) for row in range(len(new))
    ]


class _TokenLogprobs(LogitsProcessor):
    """Notes the log-probability of each chosen token, keeping one step's logits at a time."""

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []
        self._pending: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self._settle(input_ids[:, -1])
        self._pending = scores.float().log_softmax(-1)
        return scores

    def of(self, new: torch.Tensor) -> torch.Tensor:
        """Log-probabilities ``[batch, steps]`` of the generated tokens, once generation is over."""
        self._settle(new[:, -1])
        return torch.stack(self._steps, dim=1)

    def _settle(self, chosen: torch.Tensor) -> None:
        if self._pending is not None:
            self._steps.append(self._pending.gather(1, chosen[:, None])[:, 0])


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _end_tokens(language: LanguageModel) -> list[int]:
    own = language.model.generation_config.eos_token_id
    return sorted(
        {language.eos_token_id, language.encoder.end, *(own if isinstance(own, list) else [] if own is None else [own])}
    )


@contextmanager
def _settings_of_the_checkpoint_ignored(model: PreTrainedModel) -> Iterator[None]:
    """transformers fills what a call leaves open from the checkpoint's generation_config (sampling, penalties)."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
