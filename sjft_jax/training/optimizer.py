"""Stochastic gradient descent with momentum, weight decay and a step schedule, in optax."""

import optax


def step_schedule(*, learning_rate: float, drop_every: int, drop_factor: float) -> optax.Schedule:
  """learning_rate × drop_factor^⌊step / drop_every⌋, step counting from 0.

  Raises:
    ValueError: drop_every below 1.
  """
  if drop_every < 1:
    raise ValueError(f'drop_every={drop_every} is below 1; raise solver.drop_every')
  return optax.exponential_decay(learning_rate, drop_every, drop_factor, staircase=True)


def sgd(
  *,
  learning_rate: float,
  momentum: float,
  weight_decay: float,
  momentum_style: str,
  drop_every: int,
  drop_factor: float,
) -> optax.GradientTransformation:
  """SGD as Caffe or PyTorch defines it; both decay every parameter.

  With g the gradient plus weight_decay × the parameter, 'caffe' does v ← momentum·v + lr·g and
  subtracts v; 'torch' does v ← momentum·v + g and subtracts lr·v. They part after a drop of the
  learning rate, which Caffe's momentum feels only gradually.

  Raises:
    ValueError: unknown momentum_style, or drop_every below 1.
  """
  rate = optax.scale_by_learning_rate(
    step_schedule(learning_rate=learning_rate, drop_every=drop_every, drop_factor=drop_factor)
  )
  trace = optax.trace(momentum)
  orders = {'caffe': (rate, trace), 'torch': (trace, rate)}
  if momentum_style not in orders:
    raise ValueError(f'momentum_style={momentum_style!r} is unknown; known: {", ".join(orders)}')
  return optax.chain(optax.add_decayed_weights(weight_decay), *orders[momentum_style])
