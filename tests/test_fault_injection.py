"""A run that is ended again and again, and that the comparison with an undisturbed one sees all."""

import json
import signal
from collections import Counter

import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import fault_injection
from experiments.fault_injection import Mark
from sjft_jax.runtime import artifacts


def write(workdir, weight=0.5, momentum=0.1, index=3, loss=0.6, seconds=1.0, selection=b'a,b\n'):
  """A work directory with a little of everything."""
  state = {
    'params': {'kernel': np.full((2, 3), weight, np.float32)},
    'opt_state': [{'trace': np.full(4, momentum, np.float32)}],
  }
  with ocp.CheckpointManager(workdir / 'arms' / 'none' / 'checkpoints') as manager:
    for step in (9, 10):
      manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
  artifacts.save(workdir / 'ranking.npz', 'this', indices=np.array([[index, 1]]), seconds=seconds)
  line = {'step': 10, 'target_loss': loss, 'step_images_per_second': seconds}
  (workdir / 'arms' / 'none' / 'log.jsonl').write_text(json.dumps(line) + '\n')
  results = {'seconds': {'rank': seconds}, 'arms': [{'seconds': seconds, 'top1': 0.25}]}
  artifacts.write_json(workdir / 'results.json', results)
  (workdir / 'selection.csv').write_bytes(selection)
  return workdir


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
  return fault_injection.contents(write(tmp_path_factory.mktemp('expected')))


@pytest.mark.parametrize(
  ('changes', 'names'),
  [
    ({'seconds': 2.0}, []),
    (
      {'weight': np.nextafter(np.float32(0.5), np.float32(1))},
      ["arms/none/checkpoints/10['params']['kernel']"],
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
def test_a_bit_anywhere_is_a_difference_but_time_is_none(expected, tmp_path, changes, names):
  assert fault_injection.differences(write(tmp_path, **changes), expected) == names


def test_what_is_missing_or_too_much_is_a_difference(expected, tmp_path):
  workdir = write(tmp_path)
  (workdir / 'ranking.npz').rename(workdir / 'ranking.partial.npz')
  assert fault_injection.differences(workdir, expected) == [
    *('ranking.npz/indices', 'ranking.npz/fingerprint'),
    *('ranking.partial.npz/indices', 'ranking.partial.npz/fingerprint'),
  ]


def test_moments_are_spread_over_all_stages_and_come_in_order():
  stages = ['imports', 'ranking', *['step', 'checkpoint'] * 30, 'results']
  marks = [Mark(stage, f'{i}', float(i)) for i, stage in enumerate(stages)]
  marks.append(Mark('end', 'end', 99.0))
  plan = fault_injection.moments(marks, 50, np.random.default_rng(0))
  assert len(plan) == 10
  assert all(ends == sorted(ends) for ends in plan)
  killed = Counter(
    stages[moment.place] for ends in plan for moment in ends if moment.signal == signal.SIGKILL
  )
  assert killed == dict.fromkeys(stages, 10)
  others = [[m.signal for m in ends if m.signal != signal.SIGKILL] for ends in plan]
  assert Counter(map(tuple, others)) == {(signal.SIGTERM,): 5, (signal.SIGINT,): 5}


def test_damage_is_done_to_the_newest_checkpoint_that_is_needed(tmp_path):
  shared = tmp_path / 'programs'
  shared.mkdir()
  (shared / 'step').write_bytes(b'code')
  run = fault_injection.Run(tmp_path / 'one', [], shared)
  rng = np.random.default_rng(0)
  assert fault_injection.injure(run, rng) == ''
  for name, step in (('pretrain', 5), ('arms/none', 14), ('arms/none', 16)):
    folder = run.workdir / name / 'checkpoints' / str(step)
    folder.mkdir(parents=True)
    (folder / 'array').write_bytes(bytes(100))
  assert 'arms/none/checkpoints/16/array' in fault_injection.injure(run, rng)
  assert (folder.with_name('14') / 'array').read_bytes() == bytes(100)
  (run.workdir / 'arms' / 'none' / 'rounds' / '1').mkdir(parents=True)
  assert 'pretrain/checkpoints/5/array' not in fault_injection.injure(run, rng)
  (run.workdir / 'arms' / 'none' / 'rounds' / '1' / 'round.npz').touch()
  assert 'pretrain/checkpoints/5/array' in fault_injection.injure(run, rng)
  assert (shared / 'step').read_bytes() == b'code'
  run = fault_injection.Run(tmp_path / 'two', [])
  run.programs.mkdir()
  (run.programs / 'step').write_bytes(b'code')
  assert 'xla/step' in fault_injection.injure(run, rng)


@pytest.mark.slow
def test_ended_in_every_stage_a_run_comes_to_the_same_end(tmp_path):
  # Programs that compile soon.
  network = ('model.name=alexnet', 'model.width=1.0', 'model.fully_connected=False')
  changes = (*network, 'model.pretrained=', 'training.steps=8', "arms=('rounds',)")
  with fault_injection.prepared(tmp_path, *changes) as command:
    undisturbed = fault_injection.Run(tmp_path / 'undisturbed', command)
    assert undisturbed.live().status == 0, undisturbed.lives[0].output
    marks = undisturbed.lives[0].marks
    rng, ends = np.random.default_rng(0), []
    for stage, number in (
      ('ranking, begun', signal.SIGKILL),
      ('checkpoint', signal.SIGKILL),
      ('step', signal.SIGTERM),
      ('round.npz', signal.SIGKILL),
    ):
      places = [place for place, mark in enumerate(marks) if mark.stage == stage]
      ends.append(fault_injection.Moment(int(rng.choice(places)), rng.random(), number))
    run = fault_injection.Run(tmp_path / 'tormented', command, undisturbed.programs)
    fault_injection.torment(run, sorted(ends), marks, rng)
  assert len(run.lives) > len(ends)
  assert fault_injection.faults(run, fault_injection.contents(undisturbed.workdir)) == []
