"""The learning rate of each step, and the factor on it of each layer."""

import re
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from sjft_jax.runtime.choice import choose

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
  """Return the learning rate as a function of the step, from 0.

  Args:
    steps: of the whole schedule; a cosine ends there.
    learning_rate: of the first step after the warm-up.
    schedule: 'step', learning_rate × drop_factor^⌊step / drop_every⌋; or 'cosine', from
      learning_rate after the warm-up along half a cosine to 0 when all steps are taken.
    warmup_steps: steps 0 … warmup_steps − 1 have their rate scaled by 1 … warmup_steps over
      warmup_steps + 1: for none of them is the rate 0, and for none is it the full one.
    drop_every: steps between two drops.
    drop_factor: factor on the learning rate at each drop.

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
  first_factor = 1 / (warmup_steps + 1)
  if schedule == 'cosine':
    cosine = optax.warmup_cosine_decay_schedule(
      first_factor * learning_rate, learning_rate, warmup_steps, steps
    )
    # It multiplies the step by π, which strict dtype promotion refuses for integers.
    return lambda step: cosine(jnp.asarray(step, jnp.float32))

  def drops(step: Array | int) -> Array:
    # A whole division: XLA multiplies by the reciprocal of a number, and is just below some wholes.
    number = jnp.asarray(step, jnp.int32) // drop_every
    return learning_rate * jnp.power(jnp.float32(drop_factor), number.astype(jnp.float32))

  if not warmup_steps:
    return drops
  warmup = optax.linear_schedule(first_factor, 1.0, warmup_steps)
  return lambda step: warmup(step) * drops(step)


def scale_by_layer(*, layer_decay: float, head_rate: float) -> optax.GradientTransformation:
  """Scale the updates of the heads by head_rate, and of the trunk by powers of layer_decay.

  The power is 1 for the trunk's uppermost group of layers and grows by 1 from each group to the one
  below (as in timm; Clark et al. 2020, "ELECTRA").

  Returns:
    A transformation of updates {'trunk', 'target', 'source'}.
  """

  def scale(updates: PyTree, params: PyTree) -> PyTree:
    del params
    groups = depth_groups(updates['trunk'])
    num_groups = max(groups.values()) + 1
    factors = {name: layer_decay ** (num_groups - group) for name, group in groups.items()}
    scaled = {part: optax.tree_utils.tree_scale(head_rate, tree) for part, tree in updates.items()}
    trunk = {
      name: optax.tree_utils.tree_scale(factors[name], layer)
      for name, layer in updates['trunk'].items()
    }
    return scaled | {'trunk': trunk}

  return optax.stateless(scale)


def depth_groups(names: Iterable[str]) -> dict[str, int]:
  """Return the depth of each of a trunk's layers, 0 at the image (see `models.trunk`).

  A group is the stem of a network with its norm or tokens, one of its blocks, or one convolution or
  fully connected layer of VGG or AlexNet. Batch norm belongs to the layer before it; what follows
  the last block belongs to this.
  """
  # conv3_2, norm3_2 → (3, 2); fc6 → (6,); stage4_block1 → (4, 1); stem, stem_norm → ().
  positions = {name: tuple(map(int, re.findall(r'\d+', name))) for name in names}
  last = max(positions.values())
  for name, position in positions.items():
    if not position and not name.startswith('stem'):  # norm, head, head_norm
      positions[name] = last
  order = sorted(set(positions.values()))
  return {name: order.index(position) for name, position in positions.items()}
