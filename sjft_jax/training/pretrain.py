"""Train the trunk on the source alone, before the rounds, where there are no pretrained weights."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sjft_jax.data.batches import SourceBatches
from sjft_jax.runtime import console
from sjft_jax.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
  """The section `pretrain` of the configuration.

  Attributes:
    steps: optimizer updates of the trunk on the source alone; 0: none.
    learning_rate, schedule, warmup_steps, drop_every, drop_factor: as in `SolverOptions`.
  """

  steps: int
  learning_rate: float
  schedule: str
  warmup_steps: int
  drop_every: int
  drop_factor: float


def pretrain_trunk(
  trainer: Trainer, variables: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
  """Train the trunk on the source alone; return `variables` with it, and note the seconds.

  Raises:
    FloatingPointError: the last update overflowed, or as for `TrainingSession.train`.
  """
  console.stage('Pretraining the trunk on the source')
  with trainer.open(variables) as run:
    run.train(trainer.batches(None, 0, cls=SourceBatches), trainer.options.steps)
    trained = run.variables()
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained)):
    raise FloatingPointError(
      f'the parameters are not finite after the {trainer.options.steps:,} steps of pretraining; '
      'lower pretrain.learning_rate'
    )
  seconds['pretrain'] = run.progress.seconds
  params = {**variables['params'], 'trunk': trained['params']['trunk']}
  return {'params': params, 'batch_stats': trained['batch_stats']}
