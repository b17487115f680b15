"""What stage ``validate`` measures: each measure with the pieces it needs, made when first asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file

from whence.config import Config
from whence.data.prompts import load_prompts
from whence.data.tokenization import TokenizedExamples
from whence.influence.fingerprints import model_fingerprint, require_same
from whence.influence.info import load_factors_info
from whence.models import load_model
from whence.running.artifacts import QUERIES_FILE, SCORES_FILE, SCORES_INFO_FILE, SELF_INFLUENCE_FILE
from whence.running.declaration import Work
from whence.running.lineage import BASE
from whence.running.trained import Trained, share_of
from whence.running.workspace import stage_key
from whence.validation.bm25 import bm25_scores
from whence.validation.changes import Change
from whence.validation.counterfactual import Plan, counterfactual_measure, harm, plan
from whence.validation.embeddings import embedding_scores
from whence.validation.estimates import Bootstrap, best_first
from whence.validation.evidence import Measure, Method, NotMeasured
from whence.validation.gradients import Gradients, plain_gradients
from whence.validation.lds import lds_measure, random_subsets
from whence.validation.mislabeled import mislabeled_measures
from whence.validation.outcomes import answer_logprobs
from whence.validation.planted import planted_measures
from whence.validation.retraining import Retrainer
from whence.validation.stability import scores_of_refits, stability_measures
from whence.validation.tail_patch import tail_patch_changes, tail_patch_measure, with_room

RETRAININGS = "retrainings"
Result = list[Measure] | NotMeasured


@dataclass(frozen=True)
class Gathering:
    """The evidence of one run while it is gathered; a method per measure, named as in ``validation.measures``."""

    trained: Trained
    frame: pd.DataFrame
    queries: TokenizedExamples
    model: Path
    base_model: Path
    train_data: Path
    scores: Path
    scratch: Path

    @classmethod
    def open(cls, work: Work) -> Gathering:
        """Load what the measures are taken of.

        Raises:
            DataError, FactorError: the scores are not of this model, these factors and examples.
        """
        model, train_data, scores = (work.inputs[name] for name in ("model", "train_data", "scores"))
        trained = Trained.load(work.config, model, train_data)
        frame = pd.read_parquet(scores / QUERIES_FILE)
        queries = TokenizedExamples.from_frame(frame, trained.tokenizer, work.config)
        found = {
            "model": model_fingerprint(trained.network),
            "factors": load_factors_info(work.inputs["factors"]).fingerprint,
            "train_data": trained.data.info.fingerprint,
        }
        given = json.loads((scores / SCORES_INFO_FILE).read_text(encoding="utf-8"))
        require_same(found, {name: given[name] for name in found}, f"the scores in {scores}", "Score this run's again.")
        return cls(trained, frame, queries, model, model / BASE, train_data, scores, work.scratch)

    def planted(self) -> Result:
        """Planted examples among the first."""
        planted = {prompt.prompt_id: prompt.planted for prompt in load_prompts(self._settings)}
        asked = [planted.get(query_id) for query_id in self.frame["query_id"]]
        truth, ids = self.trained.data.truth, self._example_ids
        return planted_measures(self._of_methods, asked, ids, truth, self._k, self._bootstrap)

    def mislabeled(self) -> Result:
        """Wrong labels by self-influence."""
        suspicion: dict[Method, np.ndarray] = {}
        if (self.scores / SELF_INFLUENCE_FILE).exists():
            suspicion["influence"] = pd.read_parquet(self.scores / SELF_INFLUENCE_FILE)["self_influence"].to_numpy()
        suspicion["gradient_cosine"] = self._gradients.train_norms
        suspicion["random"] = np.random.default_rng(self._settings.general.seed).random(len(self._example_ids))
        return mislabeled_measures(suspicion, self._example_ids, self.trained.data.truth, self._bootstrap)

    def tail_patch(self) -> Result:
        """One further step on the top examples."""
        given, general = self._settings.validation, self._settings.general
        rate = given.tail_patch_learning_rate or self._settings.training.learning_rate / 10
        network, _ = load_model(self.model, general, dtype=torch.float32)
        rows = with_room(answer_logprobs(network, self.queries, self.trained.pad_token_id))
        top = {method: best_first(matrix, self._k)[rows] for method, matrix in self._of_methods.items()}
        changes = tail_patch_changes(
            network, self.trained.examples, self.queries.subset(rows.tolist()), top, rate, given.tail_patch_steps,
            self.trained.pad_token_id,
        )  # fmt: skip
        result = tail_patch_measure(changes, len(self.queries), self._k, rate, given.tail_patch_steps, self._bootstrap)
        return result if isinstance(result, NotMeasured) else [result]

    def stability(self) -> Result:
        """Factors fitted again."""
        refits = scores_of_refits(
            self.trained.network, self.queries, self.trained.examples, self._settings, self.trained.pad_token_id,
            self.scratch / "stability",
        )  # fmt: skip
        return stability_measures(self._influence, refits, self._bootstrap)

    def counterfactual(self) -> Result:
        """Retrained without the top examples."""
        lost = harm(self.counterfactual_plan, self.retrainer.outcomes(self.counterfactual_plan.changes))
        count = len(self._example_ids)
        return [counterfactual_measure(lost, self._k, count, self._bootstrap)]

    def lds(self) -> Result:
        """Retrained on random subsets."""
        outcomes = self.retrainer.outcomes(self.lds_changes)
        per_subset = [
            np.mean([outcomes[change] for change in self.lds_changes if change.only == subset], axis=0)
            for subset in self._subsets
        ]
        share = self._settings.validation.lds_subset_share
        return [lds_measure(self._of_methods, self._subsets, np.stack(per_subset), share, self._bootstrap)]

    @cached_property
    def counterfactual_plan(self) -> Plan:
        """Which retrainings the counterfactual takes."""
        given = self._settings.validation
        return plan(
            {"influence": self._influence, "bm25": self._bm25},
            k=self._k,
            queries=given.counterfactual_queries,
            seeds=given.counterfactual_seeds,
            random_sets=given.counterfactual_random,
            seed=self._settings.general.seed,
        )

    @cached_property
    def lds_changes(self) -> list[Change]:
        """The retrainings of the linear datamodeling score."""
        first = self._settings.general.seed
        seeds = range(first, first + self._settings.validation.lds_seeds)
        return [Change(seed, only=subset) for subset in self._subsets for seed in seeds]

    def retrain(self, task: int) -> list[Path]:
        """Do the retrainings that fall to one of ``general.parallel_tasks``; returns their files."""
        asked = self._settings.validation.measures
        changes: list[Change] = []
        if "counterfactual" in asked:
            changes += self.counterfactual_plan.changes
        if "lds" in asked:
            changes += self.lds_changes
        wanted = list(dict.fromkeys(changes))
        mine = [wanted[number] for number in share_of(self._settings, task, len(wanted))]
        self.retrainer.outcomes(mine)
        return [self.retrainer.file(change) for change in mine]

    @cached_property
    def retrainer(self) -> Retrainer:
        """Retrains from the base model."""
        return Retrainer(
            self.base_model, self.trained.examples, self.queries, self._settings, self.retrainings, self.scratch,
            self._settings.validation.processes,
        )  # fmt: skip

    @cached_property
    def retrainings(self) -> Path:
        """The folder of finished retrainings: in the work folder, if there is one, for all runs that train alike.

        They hang on nothing that is scored or measured, so other measures, or more subsets, find those there are.
        """
        settings = self._settings
        if settings.general.work_dir is None:
            return self.scratch / RETRAININGS
        alike = {"training": settings.training.model_dump(mode="json"), "loss_on": settings.dataset.loss_on,
                 "max_length": settings.general.max_length}  # fmt: skip
        key = stage_key(RETRAININGS, alike, {"base_model": self.base_model, "train_data": self.train_data})
        return Path(settings.general.work_dir) / f"{RETRAININGS}-{key[:16]}"

    @cached_property
    def _of_methods(self) -> dict[Method, np.ndarray]:
        """Scores of every method, ``[queries, examples]``, positive is helpful."""
        general = self._settings.general
        tokens = self._settings.evaluation.batch_size * general.max_length
        return {
            "influence": self._influence,
            "bm25": self._bm25,
            "gradient_cosine": self._gradients.cosines,
            "embedding": embedding_scores(
                self.trained.network, self.queries, self.trained.examples, self.trained.pad_token_id, tokens
            ),
            "random": np.random.default_rng(general.seed).random((len(self.frame), len(self._example_ids))),
        }

    @cached_property
    def _influence(self) -> np.ndarray:
        return load_file(self.scores / SCORES_FILE)["all_modules"].astype(np.float64)

    @cached_property
    def _bm25(self) -> np.ndarray:
        asked, known = (
            [f"{prompt} {answer}" for prompt, answer in zip(some["prompt"], some["completion"], strict=True)]
            for some in (self.frame, self.trained.data.frame)
        )
        return bm25_scores(asked, known)

    @cached_property
    def _gradients(self) -> Gradients:
        return plain_gradients(
            self.trained.network, self.queries, self.trained.examples, self._settings, self.trained.pad_token_id,
            self.scratch / "gradients",
        )  # fmt: skip

    @cached_property
    def _subsets(self) -> list[tuple[int, ...]]:
        given = self._settings.validation
        seed = self._settings.general.seed
        return random_subsets(len(self._example_ids), given.lds_subset_share, given.lds_subsets, seed)

    @property
    def _settings(self) -> Config:
        return self.trained.settings

    @property
    def _bootstrap(self) -> Bootstrap:
        given = self._settings.evaluation
        return Bootstrap(given.bootstrap_samples, given.confidence, self._settings.general.seed)

    @property
    def _example_ids(self) -> list[str]:
        ids: list[str] = self.trained.data.frame["example_id"].tolist()
        return ids

    @property
    def _k(self) -> int:
        return self._settings.validation.top_k
