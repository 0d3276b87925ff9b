"""Plans and budgets of memory, and errors that name the setting to lower."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.runtime import memory
from sjft_jax.runtime.compilation import CompiledFunction


def test_plan_counts_arguments_results_and_temporaries():
  def sorted_product(x):  # Neither can be fused with the other.
    return (jnp.sort(x) @ x)[:10]

  program = jax.jit(sorted_product).lower(jax.ShapeDtypeStruct((500, 500), jnp.float32)).compile()
  assert memory.planned_bytes(program) >= 500 * 500 * 4 * 3 + 500 * 10 * 4
  donating = jax.jit(lambda x: x + 1, donate_argnums=0)
  program = donating.lower(jax.ShapeDtypeStruct((1000,), jnp.float32)).compile()
  assert memory.planned_bytes(program) == 4000


def exhaust_device():
  jax.jit(lambda: jnp.zeros(1 << 55, jnp.float32) + 1)().block_until_ready()


@pytest.mark.parametrize('exhaust', [exhaust_device, lambda: np.ones(1 << 58)])
def test_out_of_memory_error_is_one_line_with_the_hint(exhaust):
  with (
    pytest.raises(
      ValueError, match=r'^training ran out of memory \(.*(allocat).*\); raise it$'
    ) as e,
    memory.explain_oom('training', 'raise it'),
  ):
    exhaust()
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
def test_messages_of_all_clients_are_recognized(message):
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
def test_other_errors_pass_unchanged(error):
  with pytest.raises(type(error)) as raised, memory.explain_oom('training', 'raise it'):
    raise error
  assert raised.value is error


def test_process_that_cannot_be_started_is_out_of_memory():
  with (
    pytest.raises(ValueError, match='Cannot allocate'),
    memory.explain_oom('training', 'lower training.workers'),
  ):
    raise OSError(12, 'Cannot allocate memory')


def test_too_large_step_warns_once(capsys, monkeypatch):
  step = CompiledFunction(jax.pmap(lambda x: jnp.sort(x) @ x, axis_name='batch'))
  x = np.ones((2, 100, 100), np.float32)
  needed = memory.planned_bytes(step.program(x))

  def warned(limit):
    monkeypatch.setattr(memory, 'available_bytes', lambda: limit)
    return memory.warn_if_too_large(step, what='this', hint='lower that')

  run = warned(needed - 1)
  for _ in range(2):
    np.testing.assert_array_equal(run(x), np.full_like(x, 100))
  output = capsys.readouterr().out
  assert output.count('warning: this is planned to take another') == 1
  assert 'lower that' in output
  warned(needed)(x)
  # What is on the devices needs no more room.
  on_device = jax.pmap(lambda x: x)(x)
  warned(needed - 40_000)(on_device)
  assert capsys.readouterr().out == ''
  warned(needed - 40_001)(on_device)
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
    (  # In a container, the name of its group on the host.
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
def test_free_memory_is_the_smallest_of_all_limits(tmp_path, files, free):
  assert memory.free_host_bytes(write(tmp_path, HOST | files)) == free


def test_free_memory_without_linux_files_is_all_of_the_machines(tmp_path):
  assert 0 < memory.free_host_bytes() <= memory.free_host_bytes(tmp_path) < 2**50


def test_available_memory_is_each_devices_share_of_the_host():
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


def test_available_memory_of_gpus_is_the_smallest(monkeypatch):
  monkeypatch.setattr(jax, 'local_devices', lambda: [Gpu(10 * GIB, 0), Gpu(10 * GIB, 2 * GIB)])
  assert memory.available_bytes() == 7 * GIB
  monkeypatch.setattr(jax, 'local_devices', lambda: [Gpu(None, 0)])
  assert memory.available_bytes() == math.inf


def test_batch_size_hint_halves_until_one():
  assert memory.batch_size_hint('a.batch_size', 5, 'x') == 'lower a.batch_size from 5 to 2'
  assert memory.batch_size_hint('a.batch_size', 1, 'lower images.crop') == 'lower images.crop'
