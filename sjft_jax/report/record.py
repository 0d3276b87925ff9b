"""What a report is made of: the finished rounds of a run, its images, and its results."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from sjft_jax import results as result_files
from sjft_jax.config import FROZEN_ARMS, arm_config
from sjft_jax.data.dataset import Dataset, Domains
from sjft_jax.report.summary import verdict_arms
from sjft_jax.report.thumbnails import SIDE, Name, Thumbnails
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.round_files import Round
from sjft_jax.selection.borrowing import Borrowing, count_borrowing


@dataclass(frozen=True)
class RoundDigest:
  """What the report shows of a round.

  Attributes:
    num_neighbors, source_images, hardness, is_correct, seconds: as in `round_files.Round`.
    predicted: the likeliest class of each test image in the first view.
    confidence: its probability.
    scores: by view, as in results.json.
  """

  num_neighbors: Int[np.ndarray, ' target']
  source_images: int
  hardness: Float[np.ndarray, ' target']
  is_correct: Bool[np.ndarray, ' target']
  seconds: float
  predicted: Int[np.ndarray, ' test']
  confidence: Float[np.ndarray, ' test']
  scores: dict[str, dict[str, float]]


def digest(round_: Round, test: Dataset) -> RoundDigest:
  """Return what the report shows of a round.

  Args:
    round_: the round.
    test: the target's test images.
  """
  first = next(iter(round_.test.values()))
  return RoundDigest(
    num_neighbors=round_.num_neighbors,
    source_images=round_.source_images,
    hardness=round_.hardness,
    is_correct=round_.is_correct,
    seconds=round_.seconds,
    predicted=first.argmax(axis=1),
    confidence=first.max(axis=1),
    scores={
      view: result_files.score(p, test.labels, len(test.classes)) for view, p in round_.test.items()
    },
  )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
  """What a report is made of.

  Attributes:
    workdir: the work directory.
    config: all options.
    domains: the data sets, without images that were left out.
    ranking: of the source.
    thumbnails: of the images ('target', 'test' or 'source', index).
    rounds: the finished rounds of each arm, in the order of the arms.
    results: what results.json holds; None: the run is not finished.
  """

  workdir: epath.Path
  config: ConfigDict
  domains: Domains
  ranking: Ranking
  thumbnails: Thumbnails
  rounds: dict[str, list[RoundDigest]]
  results: dict[str, Any] | None

  @property
  def view(self) -> str:
    """Return the view of which scores are shown, in words."""
    return str(self.config.evaluation.views[0]).replace('_', ' ')

  @property
  def titles(self) -> list[str]:
    """Return what the page calls each arm, those that train first."""
    return [self.title(arm) for arm in sorted(self.rounds, key=FROZEN_ARMS.__contains__)]

  @property
  def selecting_arm(self) -> str | None:
    """Return the arm whose neighbours are shown, the growing one if there is one."""
    for arm in ('rounds', 'constant'):
      # Another method has another ranking.
      if self.rounds.get(arm) and arm_config(self.config, arm).selection.method == 'nearest':
        return arm
    return None

  @property
  def main_arm(self) -> str:
    """Return the arm whose predictions are shown: that of the answer, if it has any."""
    arms = sorted(self.rounds, key=FROZEN_ARMS.__contains__)
    candidates = *reversed(verdict_arms(self.rounds)), *arms
    return next(arm for arm in candidates if self.rounds.get(arm))

  @functools.cached_property
  def borrowing(self) -> Borrowing:
    """Return what the selecting arm borrowed in its newest round."""
    assert self.selecting_arm is not None
    target, _, source = self.domains
    return count_borrowing(
      self.ranking.indices,
      self.rounds[self.selecting_arm][-1].num_neighbors,
      target.labels,
      source.labels,
      num_target_classes=len(target.classes),
      num_source_classes=len(source.classes),
    )

  def num_rounds(self, arm: str) -> int:
    """Return how many rounds an arm has once it is finished."""
    return 1 if arm in FROZEN_ARMS else int(self.config.selection.rounds)

  def title(self, arm: str) -> str:
    """Return what the page calls an arm."""
    return result_files.arm_title(arm, self.config.selection.rounds, self.config.arms)


def make_thumbnails(domains: Domains) -> Thumbnails:
  """Return the thumbnails of all images of a run, by data set and index."""

  def read(name: Name) -> np.ndarray:
    domain, index = name
    data: Dataset = getattr(domains, domain)
    return data.read_image(index, min_side=SIDE)

  return Thumbnails(read)
