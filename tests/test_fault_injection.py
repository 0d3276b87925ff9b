"""Tests of experiments/fault_injection.py: it stops a run anywhere and sees every difference."""

import json
import signal
from collections import Counter

import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import fault_injection
from experiments.fault_injection import Interruption, StageStart
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
  return fault_injection.digest_artifacts(write_workdir(tmp_path_factory.mktemp('expected')))


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
  assert fault_injection.find_differences(workdir, expected) == names


def test_missing_and_additional_files_are_differences(expected, tmp_path):
  workdir = write_workdir(tmp_path)
  (workdir / 'ranking.npz').rename(workdir / 'ranking.partial.npz')
  with np.load(workdir / 'ranking.partial.npz') as arrays:
    names = sorted(set(arrays) - {'seconds'})
  assert len(names) == 2
  assert fault_injection.find_differences(workdir, expected) == [
    *(f'ranking.npz/{name}' for name in names),
    *(f'ranking.partial.npz/{name}' for name in names),
  ]


def test_interruptions_are_in_order_and_as_many_in_every_stage():
  stages = ['imports', 'ranking', *['step', 'checkpoint'] * 30, 'results']
  starts = [StageStart(stage, f'{i}', float(i)) for i, stage in enumerate(stages)]
  starts.append(StageStart('end', 'end', 99.0))
  plan = fault_injection.plan_interruptions(starts, 50, np.random.default_rng(0))
  assert len(plan) == 10
  assert all(interruptions == sorted(interruptions) for interruptions in plan)
  drawn = [interruption for interruptions in plan for interruption in interruptions]
  kills = Counter(stages[i.position] for i in drawn if i.signal == signal.SIGKILL)
  assert kills == dict.fromkeys(stages, 10)
  handled = [[i.signal for i in workdir if i.signal != signal.SIGKILL] for workdir in plan]
  assert Counter(map(tuple, handled)) == {(signal.SIGTERM,): 5, (signal.SIGINT,): 5}


def test_the_newest_checkpoint_that_is_needed_is_damaged(tmp_path):
  shared = tmp_path / 'programs'
  shared.mkdir()
  (shared / 'step').write_bytes(b'code')
  run = fault_injection.Run(tmp_path / 'one', [], shared)
  rng = np.random.default_rng(0)
  assert fault_injection.damage_file(run, rng) == ''
  for name, step in (('pretrain', 5), ('arms/none', 14), ('arms/none', 16)):
    folder = run.workdir / name / 'checkpoints' / str(step)
    folder.mkdir(parents=True)
    (folder / 'array').write_bytes(bytes(100))
  assert 'arms/none/checkpoints/16/array' in fault_injection.damage_file(run, rng)
  assert (folder.with_name('14') / 'array').read_bytes() == bytes(100)
  (run.workdir / 'arms' / 'none' / 'rounds' / '1').mkdir(parents=True)
  assert 'pretrain/checkpoints/5/array' not in fault_injection.damage_file(run, rng)
  (run.workdir / 'arms' / 'none' / 'rounds' / '1' / 'round.npz').touch()
  assert 'pretrain/checkpoints/5/array' in fault_injection.damage_file(run, rng)
  assert (shared / 'step').read_bytes() == b'code'


def test_a_compiled_program_of_its_own_is_damaged(tmp_path):
  run = fault_injection.Run(tmp_path, [])
  run.programs.mkdir()
  (run.programs / 'step').write_bytes(b'code')
  assert 'xla/step' in fault_injection.damage_file(run, np.random.default_rng(0))


@pytest.mark.slow
def test_a_run_stopped_in_every_stage_ends_as_an_undisturbed_one(tmp_path):
  # Programs that compile soon.
  network = ('model.name=alexnet', 'model.width=1.0', 'model.fully_connected=False')
  changes = (*network, 'model.pretrained=', 'training.steps=8', "arms=('rounds',)")
  with fault_injection.prepare_command(tmp_path, *changes) as command:
    undisturbed = fault_injection.Run(tmp_path / 'undisturbed', command)
    assert undisturbed.start().status == 0, undisturbed.attempts[0].output
    stages = undisturbed.attempts[0].stages
    rng, interruptions = np.random.default_rng(0), []
    for stage, number in (
      ('ranking, begun', signal.SIGKILL),
      ('checkpoint', signal.SIGKILL),
      ('step', signal.SIGTERM),
      ('round.npz', signal.SIGKILL),
    ):
      positions = [position for position, start in enumerate(stages) if start.stage == stage]
      interruptions.append(Interruption(int(rng.choice(positions)), rng.random(), number))
    run = fault_injection.Run(tmp_path / 'interrupted', command, undisturbed.programs)
    fault_injection.run_to_the_end(run, sorted(interruptions), stages, rng)
  assert len(run.attempts) > len(interruptions)
  expected = fault_injection.digest_artifacts(undisturbed.workdir)
  assert fault_injection.find_problems(run, expected) == []
