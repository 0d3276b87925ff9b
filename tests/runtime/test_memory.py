"""Micro-batches chosen by what XLA plans, and errors that name the setting to lower."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.runtime import memory
from sjft_jax.runtime.compilation import CompiledFunction
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


def initial():
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
  return make_train_step(
    apply, DESCENT, 0, target_weight=0.5, source_weight=0.5, label_smoothing=0.0
  )


def choose(step, **options):
  options = {'batch_size': PAIRS, 'num_devices': 2} | options
  return memory.choose_accumulation(step, initial(), make_batch(), **options)


@pytest.mark.slow
def test_the_choice_is_that_of_trying_all(capsys):
  step, plans = make_step(), {}
  for accumulation in (1, 2, 3, 6):
    batch = shard_batch(make_batch(), accumulation=accumulation, num_devices=2)
    plans[accumulation] = memory.planned_bytes(step.program(replicate(initial(), 2), batch))
  assert plans[6] < plans[3] < plans[2] < plans[1]
  for limit in [plan + more for plan in plans.values() for more in (-1, 0)]:
    first = next((n for n in plans if plans[n] <= limit), None)
    if first is None:
      with pytest.raises(
        memory.OutOfMemoryError, match=r'6 × 2 images .*lower training.batch_size'
      ):
        choose(step, limit=limit)
    else:
      assert choose(step, limit=limit) == first
      assert f'training.accumulation={first}: the fewest' in capsys.readouterr().out


def test_the_chosen_program_is_the_one_that_runs(monkeypatch):
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
  step(replicate(initial(), 2), batch)
  assert len(compiled) == 1


def test_nothing_is_compiled_where_the_state_alone_is_too_large():
  with pytest.raises(memory.OutOfMemoryError, match=r'state and images alone .*10 bytes may be'):
    choose(None, limit=10)


class Unplanned:
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


def test_without_plans_steps_are_tried_from_the_largest_micro_batch():
  step = Unplanned(most=4)
  assert choose(step) == 3
  assert step.tried == [(2, 1, 12), (2, 2, 6), (2, 3, 4)]
  with pytest.raises(memory.OutOfMemoryError):
    choose(Unplanned(most=1))
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    choose(Unplanned(most=4, reason='INTERNAL: broken'))


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
  asked = []

  def need(candidate):
    asked.append(candidate)
    return needs[candidate]

  found = memory.first_fitting(list(needs), need, limit=limit, fixed=fixed)
  assert found == next((n for n in needs if needs[n] <= limit), None)
  assert len(set(asked)) == len(asked)


@given(st.integers(1, 1000), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**9))
def test_search_asks_three_times_if_memory_falls_as_micro_batches_do(size, fixed, rest, limit):
  candidates = [n for n in range(1, size + 1) if size % n == 0]
  asked = []

  def need(candidate):
    asked.append(candidate)
    return fixed + rest * size // candidate

  found = memory.first_fitting(candidates, need, limit=limit, fixed=fixed)
  assert found == next((n for n in candidates if fixed + rest * size // n <= limit), None)
  assert len(asked) <= 3


def test_a_plan_counts_arguments_results_and_what_lies_between():
  def sorted_product(x):  # Neither can be fused with the other.
    return (jnp.sort(x) @ x)[:10]

  program = jax.jit(sorted_product).lower(jax.ShapeDtypeStruct((500, 500), jnp.float32)).compile()
  assert memory.planned_bytes(program) >= 500 * 500 * 4 * 3 + 500 * 10 * 4
  donating = jax.jit(lambda x: x + 1, donate_argnums=0)
  program = donating.lower(jax.ShapeDtypeStruct((1000,), jnp.float32)).compile()
  assert memory.planned_bytes(program) == 4000


def exhaust():
  jax.jit(lambda: jnp.zeros(1 << 55, jnp.float32) + 1)().block_until_ready()


@pytest.mark.parametrize('run_out', [exhaust, lambda: np.ones(1 << 58)])
def test_where_memory_runs_out_the_remedy_is_told(run_out):
  with (
    pytest.raises(
      ValueError, match=r'^training ran out of memory \(.*(allocat).*\); raise it$'
    ) as e,
    memory.explain_oom('training', 'raise it'),
  ):
    run_out()
  assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
  'message',
  [
    'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\nBuffer',
    'RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (1B) on device ordinal 0',
    'INTERNAL: Failed to call cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: out of memory',
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G of 15.4G hbm.',
    'RESOURCE_EXHAUSTED: Error: Attempting to reserve 2.5G at the bottom of memory.',
    'INTERNAL: cuDNN error: CUDNN_STATUS_ALLOC_FAILED',
  ],
)
def test_every_client_is_understood(message):
  assert memory.is_out_of_memory(jax.errors.JaxRuntimeError(message))


@pytest.mark.parametrize(
  'error',
  [
    jax.errors.JaxRuntimeError('INTERNAL: something else'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)'),
    FileNotFoundError(2, 'No such file'),
    ValueError('out of memory of a user'),
    KeyboardInterrupt(),
  ],
)
def test_other_errors_pass(error):
  with pytest.raises(type(error)) as raised, memory.explain_oom('training', 'raise it'):
    raise error
  assert raised.value is error


def test_a_process_that_cannot_be_started_is_memory_too():
  with (
    pytest.raises(ValueError, match='Cannot allocate'),
    memory.explain_oom('training', 'lower training.workers'),
  ):
    raise OSError(12, 'Cannot allocate memory')


def test_a_step_that_is_too_large_is_warned_of_once(capsys):
  step = CompiledFunction(jax.pmap(lambda x: jnp.sort(x) @ x, axis_name='batch'))
  x = np.ones((2, 100, 100), np.float32)
  needed = memory.planned_bytes(step.program(x))
  watched = functools.partial(memory.warn_if_too_large, step, what='this', remedy='lower that')
  run = watched(limit=needed - 1)
  for _ in range(2):
    np.testing.assert_array_equal(run(x), np.full_like(x, 100))
  told = capsys.readouterr().out
  assert told.count('warning: this is planned to take another') == 1
  assert 'lower that' in told
  watched(limit=needed)(x)
  # What is on the devices needs no more room.
  there = replicate(x[0], 2)
  watched(limit=needed - 40_000)(there)
  assert capsys.readouterr().out == ''
  watched(limit=needed - 40_001)(there)
  assert 'warning' in capsys.readouterr().out


GIB = 2**30


def write(root: Path, files: dict[str, str | int]) -> Path:
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{content}\n')
  return root


HOST = {'proc/meminfo': f'MemTotal: {9 << 20} kB\nMemFree: 5 kB\nMemAvailable:    {8 << 20} kB'}
V1, V2 = 'sys/fs/cgroup/memory', 'sys/fs/cgroup'


@pytest.mark.parametrize(
  ('files', 'free'),
  [
    ({}, 8 * GIB),
    ({'proc/self/cgroup': '0::/'}, 8 * GIB),
    (  # The limit is of a group above; cached files can be dropped.
      {
        'proc/self/cgroup': '0::/job/step',
        f'{V2}/job/memory.max': 4 * GIB,
        f'{V2}/job/memory.current': 3 * GIB,
        f'{V2}/job/memory.stat': f'anon {2 * GIB}\ninactive_file {GIB}',
        f'{V2}/job/step/memory.max': 'max',
        f'{V2}/job/step/memory.current': GIB,
        f'{V2}/job/step/memory.stat': 'inactive_file 0',
      },
      2 * GIB,
    ),
    (  # A container that is told the host's name of its group.
      {
        'proc/self/cgroup': '4:cpu,cpuacct:/\n3:memory:/docker/f00\n0::/',
        f'{V1}/memory.limit_in_bytes': 3 * GIB,
        f'{V1}/memory.usage_in_bytes': 2 * GIB,
        f'{V1}/memory.stat': 'cache 5\ntotal_inactive_file 0',
      },
      GIB,
    ),
    (  # No limit, and more taken than there may be.
      {
        'proc/self/cgroup': '3:memory:/job',
        f'{V1}/memory.limit_in_bytes': 2**63 - 4096,
        f'{V1}/memory.usage_in_bytes': 0,
        f'{V1}/memory.stat': 'cache 5',
        f'{V1}/job/memory.limit_in_bytes': GIB,
        f'{V1}/job/memory.usage_in_bytes': 2 * GIB,
        f'{V1}/job/memory.stat': 'cache 5',
      },
      0,
    ),
  ],
)
def test_free_memory_is_the_least_of_all_limits(tmp_path, files, free):
  assert memory.free_host_bytes(write(tmp_path, HOST | files)) == free


def test_without_linux_files_the_machines_memory_counts(tmp_path):
  assert 0 < memory.free_host_bytes() <= memory.free_host_bytes(tmp_path) < 2**50


def test_the_budget_is_each_devices_share_of_the_host():
  assert (
    0
    < jax.local_device_count() * memory.available_bytes()
    < memory.free_host_bytes(Path('/nowhere'))
  )


class Gpu:
  platform = 'gpu'

  def __init__(self, limit, used):
    self.stats = limit and {'bytes_limit': limit, 'bytes_in_use': used}

  def memory_stats(self):
    return self.stats


def test_the_budget_of_gpus_is_the_least_of_theirs(monkeypatch):
  monkeypatch.setattr(jax, 'local_devices', lambda: [Gpu(10 * GIB, 0), Gpu(10 * GIB, 2 * GIB)])
  assert memory.available_bytes() == 7 * GIB
  monkeypatch.setattr(jax, 'local_devices', lambda: [Gpu(None, 0)])
  assert memory.available_bytes() == math.inf


def test_the_remedy_names_values_that_are_possible(monkeypatch):
  def remedy(**options):
    given = {'accumulation': 10, 'batch_size': 100, 'num_devices': 1}
    given |= {'name': 'resnet50v2', 'remat': False, 'dtype': 'float32'}
    return memory.training_hint(**given | options)

  assert remedy() == 'raise training.accumulation from 10 to 20'
  assert remedy(num_devices=4, accumulation=5) == 'raise training.accumulation from 5 to 25'
  assert remedy(accumulation=100) == 'lower training.batch_size or images.crop'
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  everything = remedy()
  assert 'from 10 to 20' in everything
  assert 'model.remat=True' in everything
  assert 'model.dtype=bfloat16' in everything
  assert 'remat' not in remedy(name='alexnet')
  assert remedy(remat=True, dtype='bfloat16') == 'raise training.accumulation from 10 to 20'


def test_a_batch_can_be_halved_until_it_is_one():
  assert memory.batch_size_hint('a.batch_size', 5, 'x') == 'lower a.batch_size from 5 to 2'
  assert memory.batch_size_hint('a.batch_size', 1, 'lower images.crop') == 'lower images.crop'
