"""The training step and the prediction, each a pure function mapped once over the devices.

`apply` is that of a joint network: `apply({'params', 'batch_stats'}, images, train=False)` returns
`{'target': logits, 'source': logits}`; in training it also takes `is_source`, `mutable` and `rngs`,
and returns the new batch statistics too.
"""

from collections.abc import Callable, Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

from sjft_jax.runtime.compilation import CompiledFunction
from sjft_jax.training.freeze import frozen_mask, with_frozen_statistics
from sjft_jax.training.losses import LossOptions, joint_loss
from sjft_jax.training.optimizer import ema_params

PyTree = Any
# Sums and counts, to be added over steps: the mean is the sum over the count, if there is any.
Metrics = dict[str, tuple[Float[Array, ''], Int32[Array, '']]]


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes, as arrays only.

  Attributes:
    step: steps taken so far.
    params: parameters {'trunk', 'target', 'source'}.
    batch_stats: running statistics of batch norm; empty without.
    opt_state: state of the optimizer.
  """

  step: Int32[Array, '']
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree


def create_state(
  *, params: PyTree, batch_stats: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """Create the state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=jax.jit(optimizer.init)(params),  # One program, not one for each shape.
  )


def make_train_step(
  apply: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  seed: int,
  loss_options: LossOptions,
  frozen: Collection[str] = (),
) -> CompiledFunction:
  """Make the training step: one optimizer update from the gradient of the joint loss.

  Gradients of a loss that is a mean over the whole step are summed over micro-batches and devices.
  Batch statistics are updated in every micro-batch, as in the released code. The key of dropout is
  a function of seed, state.step and the number of the micro-batch, the same on every device.

  Args:
    apply: see the module's description.
    optimizer: of the parameters.
    seed: of dropout.
    loss_options: weights of the domains and label smoothing.
    frozen: the layers of the trunk that `optimizer` leaves as they are, too.

  Returns:
    `train_step(state, batch) -> (state, metrics)`. It consumes the replicated state. The batch has
    leaves `[device, micro_batch, image, ...]`: 'image' uint8, 'label' int32 in the label space of
    the image's own domain, 'is_source' bool, and for a multi-label source 'multi_hot' bool
    [..., class], the classes in each source image. Metrics are '{target,source}_{loss,accuracy}' as
    (sum, count) over the whole step, and 'gradient_norm', the Euclidean norm of the joint loss's
    gradient (without weight decay, zero in frozen layers), as (norm, 1).
  """
  apply = with_frozen_statistics(apply, frozen)

  def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    num_source = jax.lax.psum(jnp.sum(batch['is_source']), 'batch')
    num_target = jax.lax.psum(jnp.sum(~batch['is_source']), 'batch')

    def accumulate(
      carry: tuple[PyTree, PyTree], micro_batch: dict[str, Array]
    ) -> tuple[tuple[PyTree, PyTree], PyTree]:
      gradients, batch_stats = carry
      new_gradients, (batch_stats, sums) = jax.grad(_micro_batch_loss, has_aux=True)(
        state.params,
        batch_stats,
        micro_batch,
        apply=apply,
        dropout_key=jax.random.fold_in(key, micro_batch['number']),
        num_target=num_target,
        num_source=num_source,
        options=loss_options,
        frozen=frozen,
      )
      return (jax.tree.map(jnp.add, gradients, new_gradients), batch_stats), sums

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    micro_batches = batch | {'number': jnp.arange(len(batch['image']))}
    (gradients, batch_stats), sums = scan_micro_batches(
      accumulate, (zeros, state.batch_stats), micro_batches
    )
    # Each device's loss is its contribution to one mean, so the gradients add up.
    if jax.lax.axis_size('batch') > 1:  # The sum over one device would still be a copy.
      gradients = jax.lax.psum(gradients, 'batch')
    batch_stats = jax.lax.pmean(batch_stats, 'batch')
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    sums = jax.lax.psum(jax.tree.map(jnp.sum, sums), 'batch')
    metrics = {
      'target_loss': (sums['target'], num_target),
      'source_loss': (sums['source'], num_source),
      'target_accuracy': (sums['target_hits'], num_target),
      'source_accuracy': (sums['source_hits'], num_source),
      'gradient_norm': (optax.tree_utils.tree_norm(gradients), jnp.ones((), jnp.int32)),
    }
    state = TrainState(
      step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    return state, metrics

  return CompiledFunction(
    jax.pmap(train_step, axis_name='batch', out_axes=(0, None), donate_argnums=0)
  )


def _micro_batch_loss(
  params: PyTree,
  batch_stats: PyTree,
  micro_batch: dict[str, Array],
  *,
  apply: Callable[..., Any],
  dropout_key: PRNGKeyArray,
  num_target: Int32[Array, ''],
  num_source: Int32[Array, ''],
  options: LossOptions,
  frozen: Collection[str],
) -> tuple[Float[Array, ''], tuple[PyTree, dict[str, Float[Array, '']]]]:
  """Compute a micro-batch's contribution to the loss; and its batch statistics and metric sums."""
  is_source, multi_hot = micro_batch['is_source'], micro_batch.get('multi_hot')
  if frozen:
    # Without their gradients, nothing is propagated back below the lowest layer that is trained.
    params = jax.tree.map(
      lambda x, is_frozen: jax.lax.stop_gradient(x) if is_frozen else x,
      params,
      frozen_mask(params, frozen),
    )
  logits, updates = apply(
    {'params': params, 'batch_stats': batch_stats},
    micro_batch['image'],
    train=True,
    is_source=is_source,
    mutable=['batch_stats'],
    rngs={'dropout': dropout_key},
  )
  loss, sums = joint_loss(
    logits,
    micro_batch['label'],
    is_source,
    multi_hot,
    num_target=num_target,
    num_source=num_source,
    options=options,
  )
  for domain, members in (('target', ~is_source), ('source', is_source)):
    likeliest = jnp.argmax(logits[domain], axis=-1)
    hits = likeliest == micro_batch['label']
    if domain == 'source' and multi_hot is not None:
      # Of several classes in an image, the likeliest may be any.
      hits = jnp.take_along_axis(multi_hot, likeliest[:, None], axis=1)[:, 0]
    sums[f'{domain}_hits'] = jnp.sum(hits & members).astype(jnp.float32)
  return loss, (updates.get('batch_stats', {}), sums)


def scan_micro_batches(
  body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
  carry: PyTree,
  micro_batches: dict[str, Array],
) -> tuple[PyTree, PyTree]:
  """Do what `jax.lax.scan` does, with the loop written out on CPUs.

  XLA's CPU compiler lays the gradients of convolutions out well only outside loops (ten times
  faster, and a scan of length one is a loop to it). Elsewhere a loop compiles in the time of one
  pass, which matters for a deep network.

  Args:
    body: (carry, micro-batch) -> (carry, result).
    carry: before the first micro-batch.
    micro_batches: leaves [micro_batch, ...], among them 'image'.

  Returns:
    The last carry and the stacked results.
  """
  if jax.default_backend() != 'cpu':
    return jax.lax.scan(body, carry, micro_batches)
  results = []
  for i in range(len(micro_batches['image'])):
    micro_batch = {name: leaf[i] for name, leaf in micro_batches.items()}
    if i:
      # Each micro-batch must wait for the one before, or else XLA plans memory for the activations
      # of all at once. The compiler drops optimization barriers; so the images depend on the carry,
      # through a zero (unless the carry is NaN).
      leaves = [jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(carry)]
      micro_batch['image'] += jnp.isnan(sum(leaves)).astype(micro_batch['image'].dtype)
    carry, result = body(carry, micro_batch)
    results.append(result)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def make_predict(apply: Callable[..., Any]) -> CompiledFunction:
  """Make the prediction: softmax probabilities of the target head, in evaluation mode.

  Returns:
    `predict(state, images)`, from a replicated state and uint8 images `[device, image, height,
    width, 3]` to probabilities `[device, image, class]`.
  """

  def predict(state: TrainState, images: UInt8[Array, 'b h w 3']) -> Float[Array, 'b classes']:
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    return jax.nn.softmax(apply(variables, images, train=False)['target'])

  return CompiledFunction(jax.pmap(predict, axis_name='batch'))


def make_features(apply: Callable[..., Any]) -> CompiledFunction:
  """Make the computation of the trunk's features, in evaluation mode.

  Args:
    apply: that of a joint network, which takes the name of a `method`.

  Returns:
    `features(state, images)`, as for `make_predict`, to features `[device, image, feature]`.
  """

  def features(state: TrainState, images: UInt8[Array, 'b h w 3']) -> Float[Array, 'b features']:
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    result: Array = apply(variables, images, method='features')
    return result

  return CompiledFunction(jax.pmap(features, axis_name='batch'))


def with_ema_params(state: TrainState) -> TrainState:
  """Return the state to evaluate: with the parameters' average, if the optimizer keeps one.

  Batch statistics stay as they are, for they are running averages already. Nothing is computed or
  copied, so the training step must not consume `state` while the result is in use.

  Args:
    state: replicated or not.
  """
  return state.replace(params=ema_params(state.opt_state, state.params))
