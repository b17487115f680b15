"""The index of a training set: what a question is compared with when it is first asked. Needs no torch.

For each training example it has the code of its whitened gradient's sketch (:mod:`whence.influence.sketch`), some 2 KB
at 16,384 bits, and its self-influence, which is that gradient's squared length. The rows' text lies beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from whence.data.dataset import ExampleSet
from whence.errors import DataError
from whence.files import write_json
from whence.influence.ranking import best_first
from whence.threads import available_cpus

if TYPE_CHECKING:
    from whence.models.language import LanguageModel

INFO, CODES, ROWS = "index.json", "codes.safetensors", "train_data"
FILES = (INFO, CODES, ROWS)
TOP = 10
SPREAD_ROWS = 4096  # that the spread of the estimates is taken of
SHARD_ROWS = 20_000  # at least: fewer are searched in less time than it takes to begin


class IndexInfo(BaseModel):
    """What an index was made with; anything else is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    dimensions: int
    bits: int
    seed: int
    rows: int
    model: str  # fingerprints
    tokenizer: str
    factors: str
    train_data: str
    loss_on: str
    template: str
    max_length: int
    damping_factor: float | None

    @classmethod
    def of(cls, language: LanguageModel, factors: str, data: ExampleSet) -> IndexInfo:
        """Of an index of ``data`` by the settings of ``language`` with factors of this fingerprint."""
        config = language.config
        return cls(
            dimensions=config.index.dimensions,
            bits=config.index.bits,
            seed=config.general.seed,
            rows=len(data.frame),
            model=language.model_fingerprint,
            tokenizer=language.tokenizer_fingerprint,
            factors=factors,
            train_data=data.info.fingerprint,
            loss_on=config.dataset.loss_on,
            template=config.dataset.chat_template or config.dataset.template,
            max_length=config.general.max_length,
            damping_factor=config.scores.damping_factor,
        )

    @property
    def belongs_to(self) -> dict[str, Any]:
        """What has to be the same where a question is asked."""
        return self.model_dump(exclude={"dimensions", "bits", "seed", "rows"})


class Nearest(NamedTuple):
    """Training examples by their estimated scores on one query.

    Attributes:
        rows: of the training data, strongest first.
        scores: estimates of their scores.
        mean, deviation: of the scores over the training set, as far as the estimates tell.
    """

    rows: np.ndarray
    scores: np.ndarray
    mean: float
    deviation: float


@dataclass(frozen=True)
class Index:
    """An index in memory.

    Attributes:
        info: what it was made with.
        codes: ``[examples, bytes]`` uint8.
        self_influence: ``[examples]`` fp32.
        data: the training examples as text.
    """

    info: IndexInfo
    codes: np.ndarray
    self_influence: np.ndarray
    data: ExampleSet

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Read an index, or the scores that one is made of.

        Raises:
            DataError: a file is missing, damaged, or of another index.
        """
        try:
            info = IndexInfo.model_validate_json((folder / INFO).read_bytes())
            tensors = load_file(folder / CODES)
        except (OSError, ValidationError, SafetensorError) as error:
            raise DataError(
                f"{folder} has no whole index ({error})",
                hint="run `whence score` and `whence index` with index.enabled",
            ) from error
        data = ExampleSet.read(folder / ROWS)
        found = data.info.fingerprint, len(data.frame), len(tensors["codes"])
        if found != (info.train_data, info.rows, info.rows):
            raise DataError(f"the codes in {folder} are not those of the rows beside them", hint="make the index again")
        return cls(info, tensors["codes"], tensors["self"], data)

    def nearest(self, sketch: np.ndarray, count: int, harmful: bool = False) -> Nearest:
        """The ``count`` examples of the highest estimated scores on a query, or of the lowest.

        Args:
            sketch: of the query's whitened gradient, ``[dimensions]`` fp32.
        """
        sign = -1 if harmful else 1
        query = np.ascontiguousarray(sign * sketch[None], np.float32)
        scores, rows = self._search.search(query, min(count, len(self.codes)))
        sample = sign * self._sample.search(query, self._sample.ntotal)[0].astype(np.float64)
        # Estimates lie further apart than scores, by errors that hang on the gradients' lengths alone: the sketch's
        # own, and those of rounding normal numbers to their signs, of which every further bit leaves a quarter.
        errors = (1 + (np.pi / 2 - 1) / 4 ** (self.info.bits - 1)) / self.info.dimensions
        variance = sample.var() - errors * np.square(sketch, dtype=np.float64).sum() * self.self_influence.mean()
        deviation = float(np.sqrt(max(variance, sample.var() / 100)))
        return Nearest(rows[0], sign * scores[0], float(sample.mean()), deviation)

    @cached_property
    def _search(self) -> Any:
        """The codes, dealt out to the processors: faiss searches for one query with one of them."""
        import faiss

        count = max(1, min(available_cpus(), len(self.codes) // SHARD_ROWS))
        shards: Any = faiss.IndexShards  # its types know no arguments
        whole = shards(self.info.dimensions, True, True)  # by threads, numbered on from one to the next
        for codes in np.array_split(self.codes, count):
            whole.add_shard(searchable(self.info.dimensions, self.info.bits, codes))
        return whole

    @cached_property
    def _sample(self) -> Any:
        step = -(-len(self.codes) // SPREAD_ROWS)
        return searchable(self.info.dimensions, self.info.bits, np.ascontiguousarray(self.codes[::step]))


def searchable(dimensions: int, bits: int, codes: np.ndarray | None = None) -> Any:
    """faiss's index of ``codes``, which estimates the products of their sketches with a query's.

    The codes are not centred: an example's is then the same whatever others there are, so that parts of a training set
    can be coded one by one. (``IndexRaBitQFastScan`` of faiss 1.15.1 goes wrong from 4,096 dimensions up.)
    """
    import faiss  # only where there is an index

    index = faiss.IndexRaBitQ(dimensions, faiss.METRIC_INNER_PRODUCT, bits)
    faiss.copy_array_to_vector(np.zeros(dimensions, np.float32), index.center)
    index.is_trained = True
    if codes is not None:
        index.add_sa_codes(codes)
    return index


def write_codes(folder: Path, info: IndexInfo, codes: np.ndarray, self_influence: np.ndarray) -> None:
    """Write what an index is made of, but for the rows; ``index.json`` comes last."""
    (folder / INFO).unlink(missing_ok=True)
    save_file({"codes": np.ascontiguousarray(codes), "self": self_influence.astype(np.float32)}, folder / CODES)
    write_json(folder / INFO, info.model_dump(mode="json"))


def recall(index: Index, scores: np.ndarray, sketches: np.ndarray, candidates: int) -> dict[str, float]:
    """How much of the exact ten strongest examples the index finds, on average over queries.

    Args:
        scores: exact ``[queries, examples]``.
        sketches: of the same queries, ``[queries, dimensions]``.
        candidates: examples that would be scored exactly.

    Returns:
        ``recall_at_10``, among its own first ten, and ``recall_of_candidates``, among the first ``candidates``.
    """
    found = np.stack([index.nearest(sketch, max(TOP, candidates)).rows for sketch in sketches])
    right = [np.isin(row, top) for row, top in zip(found, best_first(scores, TOP), strict=True)]
    most = min(TOP, scores.shape[1])
    shares = {"recall_at_10": TOP, "recall_of_candidates": candidates}
    return {name: float(np.mean([hits[:first].sum() / most for hits in right])) for name, first in shares.items()}
