"""Two processes of two devices each, on one machine, and one process of four devices."""

import json
import subprocess
import types

import commands
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_run import command, write_data

from sjft_jax.runtime import distributed

OPTIONS = (
  '--config.arms=("rounds",)',
  '--config.pretrain.steps=0',
  '--config.training.steps=16',
  '--config.training.augment=none',
)


def start(data, workdir, devices, *more):
  flags = f'{commands.UNOPTIMIZED} --xla_force_host_platform_device_count={devices}'
  return commands.start(command(data, workdir, *OPTIONS, *more), subprocess.STDOUT, XLA_FLAGS=flags)


def start_two(data, workdir):
  flags = f'--coordinator=localhost:{commands.free_port()}', '--num_processes=2'
  return [start(data, workdir, 2, *flags, f'--process_id={i}') for i in range(2)]


def wait_for(*processes, status=0):
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == status, output
  return outputs


def last_state(workdir):
  with ocp.CheckpointManager(workdir / 'arms' / 'rounds' / 'checkpoints') as manager:
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    return manager.restore(manager.latest_step(), args=args)['state']


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_resumed_agree_with_one(tmp_path):
  data = write_data(tmp_path / 'data')
  one, two = tmp_path / 'one', tmp_path / 'two'
  uninterrupted = start(data, one, 4)
  processes = start_two(data, two)
  checkpoints = two / 'arms' / 'rounds' / 'checkpoints'
  # Both save the same step, whichever was asked to stop; none is taken without the other.
  commands.stop_one(processes, asked=1, held=0, once=lambda: list(checkpoints.glob('[0-9]*')))
  wait_for(*processes, status=143)
  assert not (two / 'results.json').exists()

  wait_for(uninterrupted)
  first, second = wait_for(*start_two(data, two))
  assert 'test images' in first
  assert 'test images' not in second  # One of them prints, and writes.
  with np.load(one / 'ranking.npz') as a, np.load(two / 'ranking.npz') as b:
    for name in ('indices', 'divergences', 'edges'):
      np.testing.assert_array_equal(a[name], b[name])
  for part in (1, 2, 3):
    name = f'arms/rounds/rounds/{part}/selection.csv'
    assert (one / name).read_bytes() == (two / name).read_bytes()
  # Sums over devices of several processes are taken in another order.
  tables = [json.loads((run / 'results.json').read_text())['table'] for run in (one, two)]
  for row, other in zip(*tables, strict=True):
    for name, value in row.items():
      assert value == (other[name] if isinstance(value, str) else pytest.approx(other[name], 1e-5))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(a).max()),
    last_state(one),
    last_state(two),
  )


def test_processes_with_other_values_are_refused(monkeypatch):
  values = {'target images': 'a', 'source images': 'b'}
  distributed.check_same(values)
  monkeypatch.setattr(distributed.jax, 'process_count', lambda: 2)
  change = np.array([[0], [1]], np.uint8)  # Of the second value, in the second process.
  monkeypatch.setattr(distributed, 'all_gather', lambda a: np.stack([a, a + change]))
  with pytest.raises(ValueError, match='process 1 has other source images than process 0'):
    distributed.check_same(values)
  monkeypatch.setattr(distributed, 'all_gather', lambda a: np.stack([a, a]))
  distributed.check_same(values)


def test_processes_with_other_numbers_of_devices_are_refused(monkeypatch):
  distributed.check_devices()
  devices = [types.SimpleNamespace(process_index=process) for process in (0, 0, 1, 1, 2)]
  monkeypatch.setattr(distributed.jax, 'devices', lambda: devices)
  with pytest.raises(ValueError, match='process 2 has 1 devices, process 0 has 2; start all'):
    distributed.check_devices()
