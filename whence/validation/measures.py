"""The measures of one run's attributions, each with what it needs, made when it is first needed; and the evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from whence.config import ALL_MEASURES, Config, Validation
from whence.data.prompts import load_prompts
from whence.data.tokenization import TokenizedExamples
from whence.estimates import Bootstrap
from whence.evaluation.outcomes import answer_logprobs
from whence.influence.info import load_factors_info, require_same
from whence.influence.plan import share
from whence.influence.ranking import best_first
from whence.influence.results import EMBEDDING, GRADIENT_COSINE, Scores
from whence.models.loading import load_model
from whence.models.trained import TrainedModel
from whence.validation.bm25 import bm25_scores
from whence.validation.counterfactual import Change, Plan, counterfactual_measure, harm, plan
from whence.validation.evidence import Evidence, Measure, Method, NotMeasured
from whence.validation.grade import grade
from whence.validation.lds import lds_measure, random_subsets
from whence.validation.retraining import Retrainer
from whence.validation.stability import scores_of_refits, stability_measures
from whence.validation.tail_patch import tail_patch_changes, tail_patch_measure, with_room
from whence.validation.truth import mislabeled_measures, planted_measures

NOT_WANTED = "{name} is not in validation.measures (`whence validate --full` measures everything)"
Result = list[Measure] | NotMeasured


@dataclass(frozen=True)
class Measures:
    """What can be measured of the scores of a model; a method per measure, named as in ``validation.measures``.

    Attributes:
        model: folder of the model, which is loaded in float32 to be trained further.
        base_model: the base-model artifact, to train again.
        retrainings: folder of finished retrainings; they hang on nothing that is scored or measured, so that other
            measures, or more subsets, find those there are.
        scratch: folder for finished parts, from which the same work goes on.
    """

    trained: TrainedModel
    scores: Scores
    model: Path
    base_model: Path
    retrainings: Path
    scratch: Path

    def require_scores_of(self, factors: Path) -> None:
        """Refuse to judge scores of anything else.

        Raises:
            FactorError: the scores are not of this model, these factors and these examples.
        """
        fingerprints = {
            "model": self.trained.model_fingerprint,
            "factors": load_factors_info(factors).fingerprint,
            "train_data": self.trained.text.info.fingerprint,
        }
        expected = {name: self.scores.origin[name] for name in fingerprints}
        require_same(fingerprints, expected, f"the scores in {self.scores.folder}", "Score this run's again.")

    def evidence(self) -> Evidence:
        """Take every measure that is asked for, say why the others were not taken, and grade it all."""
        take: dict[str, Callable[[], Result]] = {
            "planted": self.planted,
            "mislabeled": self.mislabeled,
            "tail_patch": self.tail_patch,
            "stability": self.stability,
            "counterfactual": self.counterfactual,
            "lds": self.lds,
        }
        measures: list[Measure] = []
        missing: list[NotMeasured] = []
        for name in ALL_MEASURES:
            wanted = name in self._settings.measures
            result = take[name]() if wanted else NotMeasured(name=name, why=NOT_WANTED.format(name=name))
            if isinstance(result, NotMeasured):
                missing.append(result)
            else:
                measures += result
        config, origin = self._config, self.scores.origin
        settings = self._settings.model_dump(mode="json") | {
            "confidence": config.evaluation.confidence,
            "bootstrap_samples": config.evaluation.bootstrap_samples,
            "seed": config.general.seed,
            "factors_strategy": config.factors.strategy,
        }
        return Evidence(
            grade=grade(measures),
            measures=measures,
            not_measured=missing,
            settings=settings,
            fingerprints={name: origin[name] for name in ("model", "factors", "train_data", "tokenizer")},
        )

    def planted(self) -> Result:
        """Planted examples among the first."""
        facts = {prompt.prompt_id: prompt.planted for prompt in load_prompts(self._config)}
        of_queries = [facts.get(query_id) for query_id in self.scores.queries["query_id"]]
        truth = self.trained.text.truth
        return planted_measures(self._by_method, of_queries, self._example_ids, truth, self._k, self._bootstrap)

    def mislabeled(self) -> Result:
        """Wrong labels by self-influence."""
        suspicion: dict[Method, np.ndarray] = {}
        if self.scores.self_influence is not None:
            suspicion["influence"] = self.scores.self_influence
        if self.scores.gradient_norms is not None:
            suspicion["gradient_cosine"] = self.scores.gradient_norms
        suspicion["random"] = self._random().random(len(self._example_ids))
        return mislabeled_measures(suspicion, self._example_ids, self.trained.text.truth, self._bootstrap)

    def tail_patch(self) -> Result:
        """One further step on the top examples."""
        steps = self._settings.tail_patch_steps
        rate = self._settings.tail_patch_learning_rate or self._config.training.learning_rate / 10
        model = load_model(self.model, self._config, dtype=torch.float32).model
        rows = with_room(answer_logprobs(model, self._queries))
        top = {method: best_first(matrix, self._k)[rows] for method, matrix in self._by_method.items()}
        queries = self._queries.subset(rows.tolist())
        changes = tail_patch_changes(model, self.trained.examples, queries, top, rate, steps)
        result = tail_patch_measure(changes, len(self._queries), self._k, rate, steps, self._bootstrap)
        return result if isinstance(result, NotMeasured) else [result]

    def stability(self) -> Result:
        """Factors fitted again."""
        refits = scores_of_refits(self.trained, self._queries, self.scratch / "stability")
        return stability_measures(self._influence, refits, self._bootstrap)

    def counterfactual(self) -> Result:
        """Retrained without the top examples."""
        lost = harm(self._plan, self.retrainer.outcomes(self._plan.changes))
        return [counterfactual_measure(lost, self._k, len(self._example_ids), self._bootstrap)]

    def lds(self) -> Result:
        """Retrained on random subsets."""
        outcomes = self.retrainer.outcomes(self._lds_changes)
        per_subset = [
            np.mean([outcomes[change] for change in self._lds_changes if change.only == subset], axis=0)
            for subset in self._subsets
        ]
        fraction = self._settings.lds_subset_share
        return [lds_measure(self._by_method, self._subsets, np.stack(per_subset), fraction, self._bootstrap)]

    def retrain(self, task: int) -> list[Path]:
        """Do the retrainings that fall to one of ``general.parallel_tasks``; returns their files."""
        changes: list[Change] = []
        if "counterfactual" in self._settings.measures:
            changes += self._plan.changes
        if "lds" in self._settings.measures:
            changes += self._lds_changes
        changes = list(dict.fromkeys(changes))
        mine = [changes[number] for number in share(len(changes), task, self._config.general.parallel_tasks or 1)]
        self.retrainer.outcomes(mine)
        return [self.retrainer.file(change) for change in mine]

    @cached_property
    def retrainer(self) -> Retrainer:
        """Retrains from the base model."""
        return Retrainer(
            base_model=self.base_model,
            train=self.trained.examples,
            queries=self._queries,
            config=self._config,
            folder=self.retrainings,
            scratch=self.scratch,
            processes=self._settings.processes,
        )

    @cached_property
    def _plan(self) -> Plan:
        """Which retrainings the counterfactual takes."""
        return plan(
            {"influence": self._influence, "bm25": self._bm25},
            k=self._k,
            queries=self._settings.counterfactual_queries,
            seeds=self._settings.counterfactual_seeds,
            random_sets=self._settings.counterfactual_random,
            seed=self._config.general.seed,
        )

    @cached_property
    def _lds_changes(self) -> list[Change]:
        """The retrainings of the linear datamodeling score."""
        first = self._config.general.seed
        seeds = range(first, first + self._settings.lds_seeds)
        return [Change(seed, only=subset) for subset in self._subsets for seed in seeds]

    @cached_property
    def _by_method(self) -> dict[Method, np.ndarray]:
        """Scores of every method, ``[queries, examples]``, positive is helpful."""
        return {
            "influence": self._influence,
            "bm25": self._bm25,
            "gradient_cosine": self.scores.baselines[GRADIENT_COSINE],
            "embedding": self.scores.baselines[EMBEDDING],
            "random": self._random().random((len(self._queries), len(self._example_ids))),
        }

    @cached_property
    def _influence(self) -> np.ndarray:
        return self.scores.matrix.astype(np.float64)

    @cached_property
    def _bm25(self) -> np.ndarray:
        queries, documents = (
            [f"{prompt} {answer}" for prompt, answer in zip(frame["prompt"], frame["completion"], strict=True)]
            for frame in (self.scores.queries, self.trained.frame)
        )
        return bm25_scores(queries, documents)

    @cached_property
    def _subsets(self) -> list[tuple[int, ...]]:
        settings, seed = self._settings, self._config.general.seed
        return random_subsets(len(self._example_ids), settings.lds_subset_share, settings.lds_subsets, seed)

    @cached_property
    def _queries(self) -> TokenizedExamples:
        return self.trained.tokenize(self.scores.queries)

    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self._config.general.seed)

    @property
    def _config(self) -> Config:
        return self.trained.config

    @property
    def _settings(self) -> Validation:
        return self._config.validation

    @property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap.of(self._config)

    @property
    def _example_ids(self) -> list[str]:
        ids: list[str] = self.trained.frame["example_id"].tolist()
        return ids

    @property
    def _k(self) -> int:
        return self._settings.top_k
