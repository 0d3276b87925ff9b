"""Stochastic gradient descent with momentum: the paper's, and its variants, in optax."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int32

from sjft_jax.runtime.choice import choose
from sjft_jax.training.freeze import frozen_mask
from sjft_jax.training.schedules import learning_rate_schedule, scale_by_layer

PyTree = Any
MOMENTUM_STYLES = ('caffe', 'torch')


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
  """The section `solver` of the configuration.

  Attributes:
    learning_rate: of the first step after the warm-up.
    schedule: 'step' or 'cosine' (see `schedules.learning_rate_schedule`).
    warmup_steps: steps in which the learning rate rises linearly.
    drop_every: steps between two drops of the learning rate.
    drop_factor: factor on the learning rate at each drop.
    momentum: share of the momentum buffer that a step keeps.
    momentum_style: 'caffe', v ← momentum·v + lr·g, subtract v; or 'torch', v ← momentum·v + g,
      subtract lr·v. They differ when the learning rate changes: Caffe's momentum follows gradually.
    weight_decay: of every parameter.
    l2_sp: if not 0, l2_sp × (parameter − its value at the start) is added to the trunk's gradient
      instead of weight decay (L2-SP; Li et al. 2018).
    layer_decay: factor on the learning rate from each layer of the trunk to the one below it, and
      from the heads to the uppermost (see `schedules.scale_by_layer`).
    head_rate: factor on the heads' learning rate. As with the learning rates by layer of Caffe and
      PyTorch, both factors apply to weight decay and L2-SP too.
    ema: decay of the moving average of the parameters that is kept beside them; 0: none.
  """

  learning_rate: float
  schedule: str = 'step'
  warmup_steps: int = 0
  drop_every: int
  drop_factor: float
  momentum: float
  momentum_style: str = 'caffe'
  weight_decay: float
  l2_sp: float = 0.0
  layer_decay: float = 1.0
  head_rate: float = 1.0
  ema: float = 0.0


def sgd(
  steps: int, options: SolverOptions, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
  """Build stochastic gradient descent with momentum as Caffe or PyTorch defines it.

  Args:
    steps: of the whole schedule; a cosine ends there.
    options: see `SolverOptions`.
    frozen: layers of the trunk that stay as they are.

  Returns:
    An optimizer of parameters {'trunk', 'target', 'source'}.

  Raises:
    ValueError: an unknown momentum_style, or what `learning_rate_schedule` refuses.
  """
  choose('momentum_style', options.momentum_style, MOMENTUM_STYLES)
  scale = optax.scale_by_learning_rate(_schedule(steps, options))
  if options.layer_decay != 1 or options.head_rate != 1:
    by_layer = scale_by_layer(layer_decay=options.layer_decay, head_rate=options.head_rate)
    scale = optax.chain(scale, by_layer)
  momentum = optax.trace(options.momentum)
  update: tuple[optax.GradientTransformation, ...]
  update = (scale, momentum) if options.momentum_style == 'caffe' else (momentum, scale)
  decay = optax.add_decayed_weights(options.weight_decay)
  if options.l2_sp:
    decay = optax.chain(
      optax.masked(decay, lambda params: {part: part != 'trunk' for part in params}),
      optax.masked(
        _l2_sp(options.l2_sp), lambda params: {part: part == 'trunk' for part in params}
      ),
    )
  if frozen:
    update = *update, optax.masked(optax.set_to_zero(), lambda tree: frozen_mask(tree, frozen))
  return optax.chain(decay, *update, *([_ema(options.ema, frozen)] if options.ema else []))


def learning_rates(steps: int, options: SolverOptions) -> Float32[np.ndarray, ' step']:
  """Return the learning rate of each step, without the factors on it of layers and heads.

  Args:
    steps, options: as for `sgd`.
  """
  # As one program: its parts would be compiled one by one.
  return np.asarray(jax.jit(jax.vmap(_schedule(steps, options)))(jnp.arange(steps)))


def _schedule(steps: int, options: SolverOptions) -> optax.Schedule:
  return learning_rate_schedule(
    steps,
    learning_rate=options.learning_rate,
    schedule=options.schedule,
    warmup_steps=options.warmup_steps,
    drop_every=options.drop_every,
    drop_factor=options.drop_factor,
  )


def ema_params(opt_state: PyTree, params: PyTree) -> PyTree:
  """Return the average of the parameters if the optimizer keeps one, else `params`.

  Args:
    opt_state: of an optimizer made by `sgd`, replicated or not.
    params: the parameters themselves.
  """
  return optax.tree_utils.tree_get(opt_state, 'average', default=params)


def reset_opt_state(
  optimizer: optax.GradientTransformation, opt_state: PyTree, params: PyTree
) -> PyTree:
  """Return the state of a fresh start at `params`, with L2-SP's start as it was."""
  return jax.tree.map(
    lambda initial, old: old if isinstance(initial, StartState) else initial,
    optimizer.init(params),
    opt_state,
    is_leaf=lambda node: isinstance(node, StartState),
  )


class EmaState(NamedTuple):
  """The exponential moving average of the parameters.

  Attributes:
    steps: how many steps it is taken over.
    average: of the parameters after each of these steps.
  """

  steps: Int32[Array, '']
  average: PyTree


class StartState(NamedTuple):
  """The point that L2-SP pulls the parameters to.

  Attributes:
    start: the parameters that training started from.
  """

  start: PyTree


def _l2_sp(strength: float) -> optax.GradientTransformation:
  """Add strength × (parameters − those at the start) to the updates."""

  def update(updates: PyTree, state: StartState, params: PyTree) -> tuple[PyTree, StartState]:
    updates = jax.tree.map(lambda g, w, w0: g + strength * (w - w0), updates, params, state.start)
    return updates, state

  return optax.GradientTransformation(StartState, update)


def _ema(decay: float, frozen: Collection[str]) -> optax.GradientTransformation:
  """Leave the updates as they are, and average the parameters that they lead to.

  After step t the weight of the parameters after step i is decay^(t−i) over the sum of these
  weights: the parameters before training do not count. This is optax.ema's debiased average, as a
  recursion that keeps its precision where decay is almost 1 and t is small.
  """

  def init(params: PyTree) -> EmaState:
    return EmaState(jnp.zeros((), jnp.int32), params)

  def update(updates: PyTree, state: EmaState, params: PyTree) -> tuple[PyTree, EmaState]:
    steps = optax.safe_increment(state.steps)
    share = (1 - decay) / -jnp.expm1(math.log(decay) * steps.astype(jnp.float32))
    new_params = optax.apply_updates(params, updates)
    average = optax.incremental_update(new_params, state.average, share)
    if frozen:  # The average of what never changes would gather rounding errors.
      average = jax.tree.map(
        lambda mean, x, is_frozen: x if is_frozen else mean,
        average,
        new_params,
        frozen_mask(params, frozen),
      )
    return updates, EmaState(steps, average)

  return optax.GradientTransformation(init, update)
