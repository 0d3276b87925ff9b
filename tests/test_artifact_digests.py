"""Tests of experiments/artifact_digests.py: it sees every difference but times."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.artifact_digests import digest_artifacts, find_differences
from sjft_jax.runtime import artifacts


def save_checkpoints(path, steps, state):
  with ocp.CheckpointManager(path) as manager:
    for step in steps:
      manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))


def write_workdir(
  workdir,
  weight=0.5,
  round_weight=0.4,
  momentum=0.1,
  index=3,
  loss=0.6,
  seconds=1.0,
  selection=b'a,b\n',
):
  """Write a work directory with an artifact of each kind."""
  params = {'kernel': np.full((2, 3), weight, np.float32)}
  opt_state = [{'trace': np.full(4, momentum, np.float32)}]
  arm = workdir / 'arms' / 'none'
  save_checkpoints(arm / 'checkpoints', (9, 10), {'params': params, 'opt_state': opt_state})
  params = {'kernel': np.full((2, 3), round_weight, np.float32)}
  save_checkpoints(arm / 'rounds' / '1' / 'network', (10,), {'params': params})
  indices = np.array([[index, 1]])
  artifacts.save(workdir / 'ranking.npz', 'fingerprint', indices=indices, seconds=seconds)
  line = {'step': 10, 'target_loss': loss, 'step_images_per_second': seconds}
  (arm / 'log.jsonl').write_text(json.dumps(line) + '\n')
  results = {'seconds': {'rank': seconds}, 'arms': [{'seconds': seconds, 'top1': 0.25}]}
  artifacts.write_json(workdir / 'results.json', results)
  (workdir / 'selection.csv').write_bytes(selection)
  return workdir


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
  return digest_artifacts(write_workdir(tmp_path_factory.mktemp('expected')))


@pytest.mark.parametrize(
  ('changes', 'names'),
  [
    ({'seconds': 2.0}, []),
    (
      {'weight': np.nextafter(np.float32(0.5), np.float32(1))},
      ["arms/none/checkpoints/10['params']['kernel']"],
    ),
    (
      {'round_weight': np.nextafter(np.float32(0.4), np.float32(1))},
      ["arms/none/rounds/1/network/10['params']['kernel']"],
    ),
    (
      {'momentum': np.nextafter(np.float32(0.1), np.float32(1))},
      ["arms/none/checkpoints/10['opt_state'][0]['trace']"],
    ),
    ({'index': 2}, ['ranking.npz/indices']),
    ({'loss': np.nextafter(0.6, 1)}, ['arms/none/log.jsonl']),
    ({'selection': b'a,c\n'}, ['selection.csv']),
  ],
)
def test_every_changed_bit_is_a_difference_except_in_times(expected, tmp_path, changes, names):
  workdir = write_workdir(tmp_path, **changes)
  assert find_differences(workdir, expected) == names


def test_missing_and_additional_files_are_differences(expected, tmp_path):
  workdir = write_workdir(tmp_path)
  (workdir / 'ranking.npz').rename(workdir / 'ranking.partial.npz')
  with np.load(workdir / 'ranking.partial.npz') as arrays:
    names = sorted(set(arrays) - {'seconds'})
  assert len(names) == 2
  assert find_differences(workdir, expected) == [
    *(f'ranking.npz/{name}' for name in names),
    *(f'ranking.partial.npz/{name}' for name in names),
  ]
