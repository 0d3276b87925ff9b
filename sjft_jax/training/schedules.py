"""The learning rate of each step, and of each layer."""

import re
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import optax

from sjft_jax.runtime.options import choose

PyTree = Any
SCHEDULES = ('step', 'cosine')


def learning_rate_schedule(
  steps: int,
  *,
  learning_rate: float,
  schedule: str,
  warmup_steps: int,
  drop_every: int,
  drop_factor: float,
) -> optax.Schedule:
  """The learning rate of step 0, 1 … steps − 1.

  'step': learning_rate × drop_factor^⌊step / drop_every⌋. 'cosine': learning_rate after the
  warm-up, then falling along half a cosine to 0 when all steps are taken. The warm-up scales steps
  0 … warmup_steps − 1 by 1 … warmup_steps over warmup_steps + 1: none of them rests, none has the
  full rate.

  Raises:
    ValueError: an unknown schedule, drop_every below 1, or no step after the warm-up.
  """
  choose('schedule', schedule, SCHEDULES)
  if drop_every < 1:
    raise ValueError(f'drop_every={drop_every} is below 1; raise it')
  if warmup_steps >= steps:
    raise ValueError(
      f'warmup_steps={warmup_steps} leaves none of {steps} steps; lower warmup_steps'
    )
  first = 1 / (warmup_steps + 1)
  if schedule == 'cosine':
    cosine = optax.warmup_cosine_decay_schedule(
      first * learning_rate, learning_rate, warmup_steps, steps
    )
    # It multiplies the step by π, which strict dtype promotion refuses for integers.
    return lambda step: cosine(jnp.asarray(step, jnp.float32))
  drops = optax.exponential_decay(learning_rate, drop_every, drop_factor, staircase=True)
  if not warmup_steps:
    return drops
  warmup = optax.linear_schedule(first, 1.0, warmup_steps)
  return lambda step: warmup(step) * drops(step)


def scale_by_layer(*, layer_decay: float, head_rate: float) -> optax.GradientTransformation:
  """Scales the updates of the heads by head_rate, of 'trunk' by a power of layer_decay.

  The power is 1 for the trunk's uppermost group of layers and grows by 1 from each group to the one
  below (as in timm; Clark et al. 2020, "ELECTRA").
  """

  def scale(updates: PyTree, params: PyTree) -> PyTree:
    del params
    groups = depth_groups(updates['trunk'])
    top = max(groups.values()) + 1
    factors = {name: layer_decay ** (top - group) for name, group in groups.items()}
    scaled = {part: optax.tree_utils.tree_scale(head_rate, tree) for part, tree in updates.items()}
    trunk = {
      name: optax.tree_utils.tree_scale(factors[name], layer)
      for name, layer in updates['trunk'].items()
    }
    return scaled | {'trunk': trunk}

  return optax.stateless(scale)


def depth_groups(names: Iterable[str]) -> dict[str, int]:
  """The depths of a trunk's layers by name, 0 at the image (see `models.trunk`).

  A group is the stem of a ResNet or one of its blocks, or one convolution or fully connected layer
  of another network. Batch norm goes with the layer before it.
  """
  # conv3_2, norm3_2 → (3, 2); fc6 → (6,); stage4_block1 → (4, 1); stem, stem_norm → ().
  places = {name: tuple(map(int, re.findall(r'\d+', name))) for name in names}
  if 'norm' in places:  # Of a pre-activation ResNet, after its last block.
    places['norm'] = max(places.values())
  order = sorted(set(places.values()))
  return {name: order.index(place) for name, place in places.items()}
