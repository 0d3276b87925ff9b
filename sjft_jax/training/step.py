"""The training step and the prediction, each a pure function mapped once over the devices.

`apply` is a joint network's: `apply({'params', 'batch_stats'}, images, train=False)` gives
`{'target': logits, 'source': logits}`; in training it also takes `is_source`, `mutable` and `rngs`,
and gives the new batch statistics too.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

from sjft_jax.runtime.compilation import CompiledFunction
from sjft_jax.training.losses import LossOptions, joint_loss
from sjft_jax.training.optimizer import ema_params

PyTree = Any
# Sums and counts, to be added over steps: the mean is the sum over the count, if there is any.
Metrics = dict[str, tuple[Float[Array, ''], Int32[Array, '']]]


class TrainState(flax.struct.PyTreeNode):
  """Everything a step changes, as arrays only."""

  step: Int32[Array, '']
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree


def create_state(
  *, params: PyTree, batch_stats: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=optimizer.init(params),
  )


def with_ema_params(state: TrainState) -> TrainState:
  """The state to evaluate: with the parameters' average, if the optimizer keeps one.

  Batch statistics stay as they are: running averages already. Replicated or not, nothing is
  computed or copied; the step must not consume `state` while the result is in use.
  """
  return state.replace(params=ema_params(state.opt_state, state.params))


def replicate(tree: PyTree, num_devices: int | None = None) -> PyTree:
  """A copy of `tree` for each of this process's first `num_devices` devices (default: all)."""
  devices = np.arange(num_devices or jax.local_device_count())
  # The same axis name as the step's: arrays of another would make it compile a second time.
  return jax.pmap(lambda _, tree: tree, axis_name='batch', in_axes=(0, None))(devices, tree)


def unreplicate(tree: PyTree) -> PyTree:
  """The copy on this process's first device, as numpy arrays."""
  # Not x[0], which is compiled for every shape; and copied, for the next step takes the memory.
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).squeeze(0), tree)


def local_pairs(batch_size: int, accumulation: int) -> np.ndarray:
  """Which pairs of a batch this process's devices take, in the order of `shard_batch`."""
  of_processes = np.arange(batch_size).reshape(accumulation, jax.process_count(), -1)
  return of_processes[:, jax.process_index()].ravel()


def shard_batch(
  batch: dict[str, np.ndarray], *, accumulation: int, num_devices: int | None = None
) -> dict[str, np.ndarray]:
  """Leaves `[images, ...]` as `[device, micro_batch, image, ...]`, for `make_train_step`.

  Micro-batches are consecutive runs of images, and so are the devices' parts of one, hence a
  micro-batch holds the same images (and batch norm sees the same mixture) on any number of
  devices. A target image and its neighbour should therefore stand side by side.

  Raises:
    ValueError: the images cannot be divided evenly.
  """
  devices = num_devices or jax.local_device_count()
  (images,) = {len(leaf) for leaf in batch.values()}
  if images % (devices * accumulation):
    raise ValueError(
      f'{images} images a step do not divide by {devices} devices × {accumulation} micro-batches; '
      'change training.batch_size or training.accumulation'
    )
  return {
    name: leaf.reshape(accumulation, devices, -1, *leaf.shape[1:]).swapaxes(0, 1)
    for name, leaf in batch.items()
  }


def scan_micro_batches(
  body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
  carry: PyTree,
  micro_batches: dict[str, Array],
) -> tuple[PyTree, PyTree]:
  """`lax.scan` over micro-batches, written out on CPU.

  XLA's CPU compiler lays the gradients of convolutions out well only outside loops (ten times
  faster, and a scan of length one is a loop to it). Elsewhere a loop compiles in the time of one
  pass, which matters for a deep network.
  """
  if jax.default_backend() != 'cpu':
    return jax.lax.scan(body, carry, micro_batches)
  results = []
  for i in range(len(micro_batches['image'])):
    part = {name: leaf[i] for name, leaf in micro_batches.items()}
    if i:
      # Each waits for the one before, else their activations are planned to be there at once. The
      # compiler drops barriers: so the images depend on the carry, by a zero unless that is NaN.
      leaves = [jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(carry)]
      part['image'] += jnp.isnan(sum(leaves)).astype(part['image'].dtype)
    carry, result = body(carry, part)
    results.append(result)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def make_train_step(
  apply: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  seed: int,
  loss_options: LossOptions,
) -> CompiledFunction:
  """One optimizer update from the joint loss: `step(state, batch) -> state, metrics`.

  The returned step takes a replicated state (and consumes it) and a batch with leaves
  `[device, micro_batch, image, ...]`: 'image' uint8, 'label' int32 in the image's own label
  space, 'is_source' bool, and for a multi-label source 'multi_hot' bool [..., class], the classes in
  each source image; there, an image counts as classified if its likeliest class is among them.
  Gradients are summed over micro-batches and devices of a loss that is a mean over the whole step;
  batch statistics are updated in every micro-batch, as in the released code. Dropout's key is a
  function of seed, state.step and the micro-batch's number, the same on every device. Metrics are
  '{target,source}_{loss,accuracy}' as (sum, count) over the whole step, and 'gradient_norm', the
  Euclidean norm of the joint loss's gradient (without weight decay), as (norm, 1).
  """

  def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    num_source = jax.lax.psum(jnp.sum(batch['is_source']), 'batch')
    num_target = jax.lax.psum(jnp.sum(~batch['is_source']), 'batch')

    def loss(
      params: PyTree, batch_stats: PyTree, part: dict[str, Array], dropout: PRNGKeyArray
    ) -> tuple[Array, Any]:
      logits, updates = apply(
        {'params': params, 'batch_stats': batch_stats},
        part['image'],
        train=True,
        is_source=part['is_source'],
        mutable=['batch_stats'],
        rngs={'dropout': dropout},
      )
      value, sums = joint_loss(
        logits,
        part['label'],
        part['is_source'],
        part.get('multi_hot'),
        num_target=num_target,
        num_source=num_source,
        options=loss_options,
      )
      for domain, members in (('target', ~part['is_source']), ('source', part['is_source'])):
        likeliest = jnp.argmax(logits[domain], axis=-1)
        hits = likeliest == part['label']
        if domain == 'source' and 'multi_hot' in part:
          hits = jnp.take_along_axis(part['multi_hot'], likeliest[:, None], axis=1)[:, 0]
        sums[f'{domain}_hits'] = jnp.sum(hits & members).astype(jnp.float32)
      return value, (updates.get('batch_stats', {}), sums)

    def accumulate(
      carry: tuple[PyTree, PyTree], part: dict[str, Array]
    ) -> tuple[tuple[PyTree, PyTree], PyTree]:
      gradients, batch_stats = carry
      more, (batch_stats, sums) = jax.grad(loss, has_aux=True)(
        state.params, batch_stats, part, jax.random.fold_in(key, part['number'])
      )
      return (jax.tree.map(jnp.add, gradients, more), batch_stats), sums

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    micro_batches = batch | {'number': jnp.arange(len(batch['image']))}
    (gradients, batch_stats), sums = scan_micro_batches(
      accumulate, (zeros, state.batch_stats), micro_batches
    )
    # Each device's loss is its share of one mean, so the shares' gradients add up.
    if jax.lax.axis_size('batch') > 1:  # One device's sum would still be a copy.
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

  return CompiledFunction(jax.pmap(step, axis_name='batch', out_axes=(0, None), donate_argnums=0))


def make_predict(
  apply: Callable[..., Any],
) -> CompiledFunction:
  """`predict(state, images)`: the target head's softmax probabilities, in evaluation mode.

  From a replicated state and uint8 images `[device, image, height, width, 3]`, `[device, image,
  class]`.
  """

  def predict(state: TrainState, images: UInt8[Array, 'b h w 3']) -> Float[Array, 'b classes']:
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    return jax.nn.softmax(apply(variables, images, train=False)['target'])

  return CompiledFunction(jax.pmap(predict, axis_name='batch'))
