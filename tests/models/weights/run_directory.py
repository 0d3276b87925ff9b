"""Write work directories with the checkpoints of small networks, as runs leave them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from sjft_jax.models import joint, trunk
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.runtime.checkpoints import Checkpoints

DESCRIPTION = {
  'name': 'resnet18v1',
  'width': 1 / 64,
  'fully_connected': True,
  'style': 'caffe',
  'normalization': 'inception',
  'classes': ['a', 'b', 'c'],
}


class State(NamedTuple):
  """The parts of a training state that a checkpoint holds."""

  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any


class Average(NamedTuple):
  """A part of the optimizer's state, as `training.optimizer.EmaState`."""

  average: Any


def draw_variables(seed=0, name=DESCRIPTION['name'], **options):
  """Draw variables of a joint network as in `DESCRIPTION`, running statistics too."""
  shared = trunk.build_trunk(name=name, width=DESCRIPTION['width'], **options)
  model = joint.Joint(shared, 3, 2)
  shapes = joint.variable_shapes(model, 32)
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype('f4'), shapes)


def save_checkpoint(directory, step, variables, average=None):
  """Save the state of a training after a step, with a moving average of its parameters or none."""
  opt_state = ({'trace': np.zeros(2)}, Average(average)) if average else ()
  state = State(np.array(step, np.int32), variables['params'], variables['batch_stats'], opt_state)
  save(directory / 'checkpoints', step, state)


def save(directory, step, tree):
  """Save a tree as the checkpoint of a step."""
  with Checkpoints(directory, 'a run') as checkpoints:
    checkpoints.save(step, tree, {})


def write_run(workdir, **changes):
  """Write a work directory with one arm of one checkpoint; return its variables.

  Args:
    workdir: a path.
    changes: to `DESCRIPTION`.
  """
  variables = draw_variables()
  workdir.mkdir()
  run_checkpoint.save_description(workdir, DESCRIPTION | changes)
  save_checkpoint(workdir / 'arms' / 'rounds', 7, variables)
  return variables
