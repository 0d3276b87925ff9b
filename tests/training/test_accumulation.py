"""Micro-batches chosen by what XLA plans, or by trying; hints that name possible values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.runtime.memory import OutOfMemoryError, available_bytes, planned_bytes
from sjft_jax.training import accumulation
from sjft_jax.training.accumulation import choose_accumulation, first_fitting
from sjft_jax.training.losses import LossOptions
from sjft_jax.training.step import create_state, make_train_step, replicate, shard_batch

PAIRS, SIDE, WIDTH = 12, 8, 64
DESCENT = optax.sgd(0.1)


def apply(variables, images, *, train, is_source, mutable, rngs):
  """A network whose activations outweigh its parameters."""
  x = images.astype(jnp.float32)
  for kernel in variables['params']['trunk']:
    x = jnp.tanh(x @ kernel)
  logits = x.mean(axis=(1, 2))
  return {'target': logits, 'source': logits}, {}


def initial_state():
  random = np.random.default_rng(0)
  kernels = [random.normal(0, 0.1, (n, WIDTH)).astype(np.float32) for n in (3, WIDTH, WIDTH)]
  return create_state(params={'trunk': kernels}, batch_stats={}, optimizer=DESCENT)


def make_batch():
  random = np.random.default_rng(0)
  return {
    'image': random.integers(0, 256, (2 * PAIRS, SIDE, SIDE, 3), np.uint8),
    'label': random.integers(0, WIDTH, 2 * PAIRS).astype(np.int32),
    'is_source': np.arange(2 * PAIRS) % 2 == 1,
  }


def make_step():
  loss = LossOptions(target_weight=0.5, source_weight=0.5)
  return make_train_step(apply, DESCENT, 0, loss)


def choose(step, limit):
  """Choose for micro-batches of `PAIRS` images on two devices."""
  return choose_accumulation(
    step, initial_state(), make_batch(), batch_size=PAIRS, num_devices=2, limit=limit
  )


@pytest.mark.slow
def test_choice_is_that_of_trying_all(capsys):
  step, plans = make_step(), {}
  for number in (1, 2, 3, 6):
    batch = shard_batch(make_batch(), accumulation=number, num_devices=2)
    plans[number] = planned_bytes(step.program(replicate(initial_state(), 2), batch))
  assert plans[6] < plans[3] < plans[2] < plans[1]
  for limit in [plan + more for plan in plans.values() for more in (-1, 0)]:
    first = next((n for n in plans if plans[n] <= limit), None)
    if first is None:
      with pytest.raises(OutOfMemoryError, match=r'6 × 2 images .*lower training.batch_size'):
        choose(step, limit=limit)
    else:
      assert choose(step, limit=limit) == first
      assert f'training.accumulation={first}: the fewest' in capsys.readouterr().out


def test_chosen_program_is_the_one_that_runs(monkeypatch):
  compiled = []
  monkeypatch.setattr(
    'sjft_jax.runtime.compilation.compile_lowered',
    lambda lowered: compiled.append(1) or lowered.compile(),
  )
  step = make_step()
  chosen = choose(step, limit=1e12)
  assert chosen == 1
  assert len(compiled) == 1
  batch = shard_batch(make_batch(), accumulation=chosen, num_devices=2)
  step(replicate(initial_state(), 2), batch)
  assert len(compiled) == 1


def test_nothing_is_compiled_if_the_state_alone_is_too_large():
  with pytest.raises(OutOfMemoryError, match=r'state and images alone .*10 bytes may be'):
    choose(None, limit=10)


class UnplannedStep:
  """A step of a backend without plans, on devices that hold `most` images at once."""

  def __init__(self, most, reason='RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.'):
    self.most, self.reason, self.tried = most, reason, []

  def program(self, state, batch):
    return type('Program', (), {'memory_analysis': lambda self: None})()

  def __call__(self, state, batch):
    assert isinstance(batch['image'], np.ndarray)
    self.tried.append(batch['image'].shape[:3])
    if batch['image'].shape[2] > self.most:
      raise jax.errors.JaxRuntimeError(self.reason)
    return state, {}


def test_steps_without_plans_are_tried_from_the_largest_micro_batch():
  step = UnplannedStep(most=4)
  assert choose(step, available_bytes()) == 3
  assert step.tried == [(2, 1, 12), (2, 2, 6), (2, 3, 4)]
  with pytest.raises(OutOfMemoryError):
    choose(UnplannedStep(most=1), available_bytes())
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    choose(UnplannedStep(most=4, reason='INTERNAL: broken'), available_bytes())


@given(
  st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1e6)), min_size=1, max_size=20),
  st.floats(0, 1e6),
  st.floats(0, 1e5),
)
def test_search_finds_the_first_that_fits(gaps_and_needs, limit, fixed):
  gaps, rests = zip(*gaps_and_needs, strict=True)
  # Some are only known to be too much.
  falling = (math.inf if rest > 9e5 else fixed + rest for rest in sorted(rests, reverse=True))
  needs = dict(zip(np.cumsum(gaps).tolist(), falling, strict=True))
  calls = []

  def need(candidate):
    calls.append(candidate)
    return needs[candidate]

  chosen = first_fitting(list(needs), need, limit=limit, fixed=fixed)
  assert chosen == next((n for n in needs if needs[n] <= limit), None)
  assert len(set(calls)) == len(calls)


@given(st.integers(1, 1000), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**9))
def test_search_calls_need_at_most_three_times_if_memory_falls_as_micro_batches_do(
  size, fixed, rest, limit
):
  candidates = [n for n in range(1, size + 1) if size % n == 0]
  calls = []

  def need(candidate):
    calls.append(candidate)
    return fixed + rest * size // candidate

  chosen = first_fitting(candidates, need, limit=limit, fixed=fixed)
  assert chosen == next((n for n in candidates if fixed + rest * size // n <= limit), None)
  assert len(calls) <= 3


def test_hint_names_possible_values(monkeypatch):
  def hint(**options):
    defaults = {'accumulation': 10, 'batch_size': 100, 'num_devices': 1}
    defaults |= {'name': 'resnet50v2', 'remat': False, 'dtype': 'float32'}
    return accumulation.training_hint(**defaults | options)

  assert hint() == 'raise training.accumulation from 10 to 20'
  assert hint(num_devices=4, accumulation=5) == 'raise training.accumulation from 5 to 25'
  assert hint(accumulation=100) == 'lower training.batch_size or images.crop'
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  ways = hint()
  assert 'from 10 to 20' in ways
  assert 'model.remat=True' in ways
  assert 'model.dtype=bfloat16' in ways
  assert 'remat' not in hint(name='alexnet')
  assert hint(remat=True, dtype='bfloat16') == 'raise training.accumulation from 10 to 20'
