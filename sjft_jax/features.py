"""Images by the features of the trunk that training starts from: computed once, and compared."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.retrieval.knn import Ranking, TopK, decode_keys
from sjft_jax.runtime import artifacts, console, distributed
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.training import sharding, step
from sjft_jax.training.trainer import Trainer

# In the work directory: the features of the training images, and the ranking of the source by them.
FEATURES, RANKING = 'features.npz', 'feature_ranking.npz'
# Source images whose features are in memory at once.
_BLOCK = 4096

Features = Float[np.ndarray, 'image feature']


def load_or_compute(trainer: Trainer, variables: dict[str, Any]) -> Features:
  """Return the features of the central crop of each training image, from a file if it is there.

  Args:
    trainer: has the data sets and the network.
    variables: 'params' and 'batch_stats' that training starts from.
  """
  target = trainer.domains.target
  path = trainer.directory.parent.parent / FEATURES
  fingerprint = artifacts.fingerprint(trainer.fingerprint, target.fingerprint)
  arrays = artifacts.load(path, fingerprint)
  if arrays is not None:
    return arrays['features']
  evaluator, state = _evaluator(trainer), _state(variables)
  features = evaluator(state, target, 'center')
  artifacts.save(path, fingerprint, features=features)
  distributed.barrier()  # The next time, all processes find the file or none does.
  return features


def rank_arms(
  trainers: Mapping[str, Trainer],
  variables: dict[str, Any],
  selections: Mapping[str, SelectionOptions],
) -> dict[str, Ranking]:
  """Return the ranking of each arm that selects by features; there may be none.

  Args:
    trainers: that of each arm.
    variables: as for `load_or_compute`.
    selections: the options of each arm.
  """
  depths = {arm: options.feature_depth for arm, options in selections.items()}
  arms = [arm for arm, depth in depths.items() if depth]
  if not arms:
    return {}
  console.stage('Ranking the source by the features of the trunk')
  ranking = load_or_rank_by_cosine(trainers[arms[0]], variables, max(depths.values()))
  return dict.fromkeys(arms, ranking)


def load_or_rank_by_cosine(trainer: Trainer, variables: dict[str, Any], depth: int) -> Ranking:
  """Rank the source for every target image by the cosine distance of their features.

  Args:
    trainer, variables: as for `load_or_compute`.
    depth: neighbours of each target image.

  Returns:
    The ranking, ties by source index; its divergences are 1 − cosine.
  """
  target, _, source = trainer.domains
  path = trainer.directory.parent.parent / RANKING
  fingerprint = artifacts.fingerprint(
    trainer.fingerprint, target.fingerprint, source.fingerprint, depth
  )
  arrays = artifacts.load(path, fingerprint)
  if arrays is not None:
    console.say(f'  done before: {path}')
    return Ranking(arrays['indices'], arrays['divergences'])
  targets = _normalized(load_or_compute(trainer, variables))
  evaluator, state = _evaluator(trainer), _state(variables)
  top_k = TopK(len(target), depth)
  for start in range(0, len(source), _BLOCK):
    block = SubsetDataset(source, np.arange(start, min(start + _BLOCK, len(source))))
    sources = _normalized(evaluator(state, block, 'center'))
    # A product may sum in another order when its shape changes: with a shorter last block, equal
    # images would be at distances that differ in the last bit, and ties no longer by index.
    padded = np.pad(sources, ((0, _BLOCK - len(sources)), (0, 0)))
    top_k.add(np.maximum(1 - targets @ padded.T, 0)[:, : len(sources)], start)
  ranking = decode_keys(top_k.keys(), depth)
  artifacts.save(path, fingerprint, **ranking._asdict())
  distributed.barrier()
  return ranking


def _evaluator(trainer: Trainer) -> Any:
  return replace(trainer.evaluator, predict_step=trainer.feature_step)


def _state(variables: dict[str, Any]) -> step.TrainState:
  return sharding.replicate(step.TrainState(jnp.int32(0), **variables, opt_state=()))


def _normalized(features: Features) -> Features:
  # Where no filter responds to an image, the features are zero; it is at distance 1 from all.
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(norms, np.finfo(np.float32).tiny)
