"""The micro-batches are chosen by the memory that XLA plans; hints name options to change."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.runtime import artifacts, memory
from sjft_jax.training.accumulation import (
  choose_accumulation,
  first_fitting,
  load_or_choose_accumulation,
  training_hint,
)
from sjft_jax.training.losses import LossOptions
from sjft_jax.training.sharding import replicate, shard_batch
from sjft_jax.training.step import create_state, make_train_step

PAIRS, SIDE, WIDTH = 12, 8, 64
GRADIENT_DESCENT = optax.sgd(0.1)


def apply(variables, images, *, train, is_source, mutable, rngs):
  """Apply a network whose activations outweigh its parameters."""
  x = images.astype(jnp.float32)
  for kernel in variables['params']['trunk']:
    x = jnp.tanh(x @ kernel)
  logits = x.mean(axis=(1, 2))
  return {'target': logits, 'source': logits}, {}


def make_state():
  random = np.random.default_rng(0)
  kernels = [random.normal(0, 0.1, (n, WIDTH)).astype(np.float32) for n in (3, WIDTH, WIDTH)]
  return create_state(params={'trunk': kernels}, batch_stats={}, optimizer=GRADIENT_DESCENT)


def make_batch():
  random = np.random.default_rng(0)
  return {
    'image': random.integers(0, 256, (2 * PAIRS, SIDE, SIDE, 3), np.uint8),
    'label': random.integers(0, WIDTH, 2 * PAIRS).astype(np.int32),
    'is_source': np.arange(2 * PAIRS) % 2 == 1,
  }


def make_step():
  return make_train_step(
    apply, GRADIENT_DESCENT, 0, LossOptions(target_weight=0.5, source_weight=0.5)
  )


def choose(train_step, limit):
  return choose_accumulation(
    [(train_step, make_state())], make_batch(), batch_size=PAIRS, num_devices=2, limit=limit
  )


@pytest.mark.slow
def test_choice_is_that_of_trying_all_candidates(capsys):
  train_step, plans = make_step(), {}
  for accumulation in (1, 2, 3, 6):
    batch = shard_batch(make_batch(), accumulation=accumulation, num_devices=2)
    program = train_step.program(replicate(make_state(), 2), batch)
    plans[accumulation] = memory.planned_bytes(program)
  assert plans[6] < plans[3] < plans[2] < plans[1]
  for limit in [plan + more for plan in plans.values() for more in (-1, 0)]:
    expected = next((n for n in plans if plans[n] <= limit), None)
    if expected is None:
      with pytest.raises(
        memory.OutOfMemoryError, match=r'6 × 2 images .*lower training.batch_size'
      ):
        choose(train_step, limit)
    else:
      assert choose(train_step, limit) == expected
      assert f'training.accumulation={expected}: the fewest' in capsys.readouterr().out


@pytest.fixture
def compiled(monkeypatch):
  """A list that grows by one whenever a step is compiled."""
  compiled = []
  monkeypatch.setattr(
    'sjft_jax.runtime.compilation.compile_lowered',
    lambda lowered: compiled.append(1) or lowered.compile(),
  )
  return compiled


def test_chosen_program_is_not_compiled_again(compiled):
  train_step = make_step()
  chosen = choose(train_step, 1e12)
  assert chosen == 1
  assert len(compiled) == 1
  batch = shard_batch(make_batch(), accumulation=chosen, num_devices=2)
  train_step(replicate(make_state(), 2), batch)
  assert len(compiled) == 1


def test_nothing_is_compiled_where_the_state_alone_is_too_large():
  with pytest.raises(memory.OutOfMemoryError, match=r'state and images alone .*10 bytes may be'):
    choose(None, 10)


class UnplannedStep:
  """A step of a backend that plans no memory, on devices that hold `max_images` at once."""

  def __init__(self, max_images, message='RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.'):
    self.max_images, self.message, self.shapes = max_images, message, []

  def program(self, state, batch):
    return type('Program', (), {'memory_analysis': lambda self: None})()

  def __call__(self, state, batch):
    assert isinstance(batch['image'], np.ndarray)
    self.shapes.append(batch['image'].shape[:3])
    if batch['image'].shape[2] > self.max_images:
      raise jax.errors.JaxRuntimeError(self.message)
    return state, {}


@pytest.mark.parametrize('limit', [1e12, math.inf])
def test_candidates_are_run_from_the_largest_micro_batch_where_memory_is_not_planned(limit):
  train_step = UnplannedStep(max_images=4)
  assert choose(train_step, limit) == 3
  assert train_step.shapes == [(2, 1, 12), (2, 2, 6), (2, 3, 4)]
  with pytest.raises(memory.OutOfMemoryError):
    choose(UnplannedStep(max_images=1), limit)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    choose(UnplannedStep(max_images=4, message='INTERNAL: broken'), limit)


@pytest.mark.parametrize('sizes', [(4, 12), (12, 4)])
def test_the_step_that_needs_most_memory_decides_in_whatever_order(sizes):
  trainings = [(UnplannedStep(max_images=size), make_state()) for size in sizes]
  chosen = choose_accumulation(
    trainings, make_batch(), batch_size=PAIRS, num_devices=2, limit=math.inf
  )
  assert chosen == 3


def load_or_choose(path, max_images):
  train_step = UnplannedStep(max_images)
  chosen = load_or_choose_accumulation(
    epath.Path(path), [(train_step, make_state())], make_batch(), batch_size=PAIRS
  )
  return chosen, train_step.shapes


def test_choice_is_made_once_and_then_loaded(tmp_path):
  assert jax.device_count() == 4
  chosen, shapes = load_or_choose(tmp_path / 'accumulation.json', max_images=2)
  assert chosen == 3
  assert shapes == [(4, 1, 6), (4, 3, 2)]
  # On other devices too, since it decides batch statistics.
  chosen, shapes = load_or_choose(tmp_path / 'accumulation.json', max_images=6)
  assert chosen == 3
  assert shapes == []
  assert load_or_choose(tmp_path / 'other.json', max_images=6)[0] == 1


def test_number_that_was_chosen_on_fewer_devices_is_refused_before_the_first_step(tmp_path):
  assert jax.device_count() == 4
  artifacts.write_json(epath.Path(tmp_path / 'accumulation.json'), {'accumulation': PAIRS // 2})
  message = (
    r'accumulation=6, .*: 4 cannot share its micro-batches of 2 .*devices that divides 2, or'
  )
  with pytest.raises(ValueError, match=message):
    load_or_choose(tmp_path / 'accumulation.json', max_images=6)


def test_damaged_number_has_all_deleted_that_was_trained_with_it(tmp_path):
  """Features are those of the trunk that was pretrained with its batch statistics."""
  (tmp_path / 'accumulation.json').write_text('{}')
  with pytest.raises(ValueError, match=r'pretrain, .*/features\.npz, .*/feature_ranking\.npz, '):
    load_or_choose(tmp_path / 'accumulation.json', max_images=6)


def test_nothing_is_saved_where_no_candidate_fits(tmp_path):
  with pytest.raises(memory.OutOfMemoryError):
    load_or_choose(tmp_path / 'accumulation.json', max_images=1)
  assert not any(tmp_path.iterdir())


@given(
  st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1e6)), min_size=1, max_size=20),
  st.floats(0, 1e6),
  st.floats(0, 1e5),
)
def test_first_fitting_returns_the_first_candidate_that_fits(gaps_and_needs, limit, fixed):
  gaps, rests = zip(*gaps_and_needs, strict=True)
  # Some are only known to be too much.
  falling = (math.inf if rest > 9e5 else fixed + rest for rest in sorted(rests, reverse=True))
  needs = dict(zip(np.cumsum(gaps).tolist(), falling, strict=True))
  calls = []

  def need(candidate):
    calls.append(candidate)
    return needs[candidate]

  result = first_fitting(list(needs), need, limit=limit, fixed=fixed)
  assert result == next((n for n in needs if needs[n] <= limit), None)
  assert len(set(calls)) == len(calls)


@given(st.integers(1, 1000), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**9))
def test_first_fitting_calls_three_times_if_memory_falls_as_micro_batches_do(
  size, fixed, rest, limit
):
  candidates = [n for n in range(1, size + 1) if size % n == 0]
  calls = []

  def need(candidate):
    calls.append(candidate)
    return fixed + rest * size // candidate

  result = first_fitting(candidates, need, limit=limit, fixed=fixed)
  assert result == next((n for n in candidates if fixed + rest * size // n <= limit), None)
  assert len(calls) <= 3


def test_training_hint_names_possible_values(monkeypatch):
  def hint(**options):
    defaults = {'accumulation': 10, 'batch_size': 100, 'num_devices': 1}
    defaults |= {'name': 'resnet50v2', 'remat': False, 'dtype': 'float32'}
    return training_hint(**defaults | options)

  end = '; as this changes results, it needs a new --workdir'
  assert hint() == f'raise training.accumulation from 10 to 20{end}'
  assert hint(num_devices=4, accumulation=5) == f'raise training.accumulation from 5 to 25{end}'
  assert hint(accumulation=100) == f'lower training.batch_size or images.crop{end}'
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  hints = hint()
  assert 'from 10 to 20' in hints
  assert 'model.remat=True' in hints
  assert 'model.dtype=bfloat16' in hints
  assert 'remat' not in hint(name='alexnet')
  assert hint(remat=True, dtype='bfloat16') == f'raise training.accumulation from 10 to 20{end}'
