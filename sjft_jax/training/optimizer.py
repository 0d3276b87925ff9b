"""Stochastic gradient descent with momentum, the paper's and its options, in optax."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from sjft_jax.runtime.options import choose
from sjft_jax.training.schedules import learning_rate_schedule, scale_by_layer

PyTree = Any
MOMENTUM_STYLES = ('caffe', 'torch')


class EmaState(NamedTuple):
  """The exponential moving average of the parameters after each of so many steps."""

  steps: Int32[Array, '']
  average: PyTree


class StartState(NamedTuple):
  """The parameters that training started from."""

  start: PyTree


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
  """The section `solver` of the configuration.

  Attributes:
    learning_rate: of the first step after the warm-up.
    schedule: 'step' or 'cosine' (see `schedules.learning_rate_schedule`).
    warmup_steps: steps in which the learning rate rises linearly.
    drop_every: steps between two drops of the learning rate.
    drop_factor: on the learning rate at each drop.
    momentum: share of the momentum buffer that a step keeps.
    momentum_style: 'caffe', v ← momentum·v + lr·g, subtract v; or 'torch', v ← momentum·v + g,
      subtract lr·v. They part when the learning rate changes, which Caffe's momentum feels only
      gradually.
    weight_decay: of every parameter.
    l2_sp: if not 0, instead of weight decay in the trunk: the gradient gets
      l2_sp × (parameter − its value at the start), L2-SP (Li et al. 2018).
    layer_decay: factor on the learning rate from each layer of the trunk to the one below it, and
      from the heads to the uppermost (see `schedules.scale_by_layer`).
    head_rate: factor on the heads' learning rate. As in Caffe and PyTorch, where each layer may
      have a learning rate of its own, these factors slow weight decay and L2-SP down with it.
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


def sgd(steps: int, options: SolverOptions) -> optax.GradientTransformation:
  """Build stochastic gradient descent with momentum as Caffe or PyTorch defines it.

  Args:
    steps: of the whole schedule; a cosine ends there.
    options: see `SolverOptions`.

  Returns:
    A transformation of parameters {'trunk', 'target', 'source'}.

  Raises:
    ValueError: an unknown momentum_style, or what `learning_rate_schedule` refuses.
  """
  choose('momentum_style', options.momentum_style, MOMENTUM_STYLES)
  schedule = learning_rate_schedule(
    steps,
    learning_rate=options.learning_rate,
    schedule=options.schedule,
    warmup_steps=options.warmup_steps,
    drop_every=options.drop_every,
    drop_factor=options.drop_factor,
  )
  scale = optax.scale_by_learning_rate(schedule)
  if options.layer_decay != 1 or options.head_rate != 1:
    by_layer = scale_by_layer(layer_decay=options.layer_decay, head_rate=options.head_rate)
    scale = optax.chain(scale, by_layer)
  momentum = optax.trace(options.momentum)
  update = (scale, momentum) if options.momentum_style == 'caffe' else (momentum, scale)
  decay = optax.add_decayed_weights(options.weight_decay)
  if options.l2_sp:
    decay = optax.chain(
      optax.masked(decay, lambda params: {part: part != 'trunk' for part in params}),
      optax.masked(_l2_sp(options.l2_sp), lambda params: {p: p == 'trunk' for p in params}),
    )
  return optax.chain(decay, *update, *([_ema(options.ema)] if options.ema else []))


def ema_params(opt_state: PyTree, params: PyTree) -> PyTree:
  """The average of the parameters if this optimizer keeps one, else `params`; of any layout."""
  return optax.tree_utils.tree_get(opt_state, 'average', default=params)


def reset_opt_state(
  optimizer: optax.GradientTransformation, opt_state: PyTree, params: PyTree
) -> PyTree:
  """The state of a fresh start at `params` that remembers where training began."""
  return jax.tree.map(
    lambda fresh, old: old if isinstance(fresh, StartState) else fresh,
    optimizer.init(params),
    opt_state,
    is_leaf=lambda node: isinstance(node, StartState),
  )


def _l2_sp(strength: float) -> optax.GradientTransformation:
  """Adds strength × (parameters − those at the start)."""

  def update(updates: PyTree, state: StartState, params: PyTree) -> tuple[PyTree, StartState]:
    pull = jax.tree.map(lambda g, w, w0: g + strength * (w - w0), updates, params, state.start)
    return pull, state

  return optax.GradientTransformation(StartState, update)


def _ema(decay: float) -> optax.GradientTransformation:
  """Passes updates on and averages the parameters that they lead to.

  After step t the weight of the parameters after step i is decay^(t−i) over the sum of these
  weights: what they were before training does not count. It is optax.ema's debiased average, as a
  recursion that keeps its precision when decay is almost 1 and t small.
  """

  def init(params: PyTree) -> EmaState:
    return EmaState(jnp.zeros((), jnp.int32), params)

  def update(updates: PyTree, state: EmaState, params: PyTree) -> tuple[PyTree, EmaState]:
    steps = optax.safe_increment(state.steps)
    share = (1 - decay) / -jnp.expm1(math.log(decay) * steps.astype(jnp.float32))
    new = optax.apply_updates(params, updates)
    return updates, EmaState(steps, optax.incremental_update(new, state.average, share))

  return optax.GradientTransformation(init, update)
