"""Stochastic gradient descent with momentum, the paper's and its options, in optax."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from sjft_jax.training.learning_rates import by_step, scale_by_layer

PyTree = Any


class Average(NamedTuple):
  """The exponential moving average of the parameters after each of so many steps."""

  steps: Int32[Array, '']
  average: PyTree


class Start(NamedTuple):
  """The parameters that training started from."""

  start: PyTree


def sgd(
  steps: int,
  *,
  learning_rate: float,
  schedule: str,
  warmup_steps: int,
  drop_every: int,
  drop_factor: float,
  momentum: float,
  momentum_style: str,
  weight_decay: float,
  pull_to_start: float,
  layer_decay: float,
  head_rate: float,
  ema: float,
) -> optax.GradientTransformation:
  """SGD as Caffe or PyTorch defines it, over `steps` steps of parameters 'trunk' and heads.

  With g the gradient plus weight_decay × the parameter, 'caffe' does v ← momentum·v + lr·g and
  subtracts v; 'torch' does v ← momentum·v + g and subtracts lr·v. They part when the learning rate
  changes, which Caffe's momentum feels only gradually.

  Args:
    steps: of the whole training, after which the cosine ends.
    learning_rate, schedule, warmup_steps, drop_every, drop_factor: see `by_step`.
    momentum: share of v that a step keeps.
    momentum_style: 'caffe' or 'torch'.
    weight_decay: of every parameter.
    pull_to_start: if not 0, instead of weight_decay in the trunk: g is the gradient plus
      pull_to_start × (parameter − its value in `init`), L2-SP (Li et al. 2018).
    layer_decay: factor on the learning rate from each layer of the trunk to the one below it, and
      from the heads to the uppermost (see `scale_by_layer`).
    head_rate: factor on the heads' learning rate. As in Caffe and PyTorch, where each layer may
      have a learning rate of its own, these factors slow weight decay and the pull down with it.
    ema: decay of the average of the parameters that is kept beside them (see `averaged`); 0: none.

  Raises:
    ValueError: unknown momentum_style, or what `by_step` refuses.
  """
  rates = by_step(
    steps,
    learning_rate=learning_rate,
    schedule=schedule,
    warmup_steps=warmup_steps,
    drop_every=drop_every,
    drop_factor=drop_factor,
  )
  rate = optax.scale_by_learning_rate(rates)
  if layer_decay != 1 or head_rate != 1:
    rate = optax.chain(rate, scale_by_layer(layer_decay=layer_decay, head_rate=head_rate))
  trace = optax.trace(momentum)
  orders = {'caffe': (rate, trace), 'torch': (trace, rate)}
  if momentum_style not in orders:
    raise ValueError(f'momentum_style={momentum_style!r} is unknown; known: {", ".join(orders)}')
  decay = optax.add_decayed_weights(weight_decay)
  if pull_to_start:
    decay = optax.chain(
      optax.masked(decay, lambda params: {part: part != 'trunk' for part in params}),
      optax.masked(_pull(pull_to_start), lambda params: {part: part == 'trunk' for part in params}),
    )
  return optax.chain(decay, *orders[momentum_style], *([_average(ema)] if ema else []))


def averaged(opt_state: PyTree, params: PyTree) -> PyTree:
  """The average of the parameters if this optimizer keeps one, else `params`; of any layout."""
  return optax.tree_utils.tree_get(opt_state, 'average', default=params)


def restarted(optimizer: optax.GradientTransformation, opt_state: PyTree, params: PyTree) -> PyTree:
  """The state of a fresh start at `params` that remembers where training began."""
  return jax.tree.map(
    lambda fresh, old: old if isinstance(fresh, Start) else fresh,
    optimizer.init(params),
    opt_state,
    is_leaf=lambda node: isinstance(node, Start),
  )


def _pull(strength: float) -> optax.GradientTransformation:
  """Adds strength × (parameters − those at the start)."""

  def update(updates: PyTree, state: Start, params: PyTree) -> tuple[PyTree, Start]:
    pull = jax.tree.map(lambda g, w, w0: g + strength * (w - w0), updates, params, state.start)
    return pull, state

  return optax.GradientTransformation(Start, update)


def _average(decay: float) -> optax.GradientTransformation:
  """Passes updates on and averages the parameters that they lead to.

  After step t the weight of the parameters after step i is decay^(t−i) over the sum of these
  weights: what they were before training does not count. It is optax.ema's debiased average, as a
  recursion that keeps its precision when decay is almost 1 and t small.
  """

  def init(params: PyTree) -> Average:
    return Average(jnp.zeros((), jnp.int32), params)

  def update(updates: PyTree, state: Average, params: PyTree) -> tuple[PyTree, Average]:
    steps = optax.safe_increment(state.steps)
    share = (1 - decay) / -jnp.expm1(math.log(decay) * steps.astype(jnp.float32))
    new = optax.apply_updates(params, updates)
    return updates, Average(steps, optax.incremental_update(new, state.average, share))

  return optax.GradientTransformation(init, update)
