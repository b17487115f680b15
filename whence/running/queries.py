"""The queries that are scored: the prompts with their reference answers, with the model's own, or both."""

from __future__ import annotations

import pandas as pd

from whence.config import Config
from whence.data.formatting import GENERATED_SUFFIX
from whence.data.prompts import Prompt, load_prompts


def query_frame(settings: Config, generations: pd.DataFrame) -> pd.DataFrame:
    """The queries as examples: ``query_id, prompt, completion, source`` with source ``reference`` or ``generated``."""
    wanted = settings.scores.use_generated
    frames = []
    if wanted in (False, "both"):
        frames.append(_reference_queries(load_prompts(settings)))
    if wanted in (True, "both"):
        own = generations[generations["model_id"] == settings.models.finetuned.id]
        frames.append(
            pd.DataFrame(
                {
                    "query_id": own["prompt_id"] + GENERATED_SUFFIX,
                    "prompt": own["prompt"],
                    "completion": own["answer"],
                    "source": "generated",
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _reference_queries(prompts: list[Prompt]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "query_id": [prompt.prompt_id for prompt in prompts],
            "prompt": [prompt.prompt for prompt in prompts],
            "completion": [prompt.reference for prompt in prompts],
            "source": "reference",
        }
    )
