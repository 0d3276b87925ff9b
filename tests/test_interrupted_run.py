"""Tests of experiments/interrupted_run.py: stages are stopped evenly, needed files are damaged."""

import signal
from collections import Counter

import numpy as np

from experiments.interrupted_run import Run, StageStart, damage_file, plan_interruptions


def test_interruptions_are_in_order_and_as_many_in_every_stage():
  stages = ['imports', 'ranking', *['step', 'checkpoint'] * 30, 'results']
  starts = [StageStart(stage, f'{i}', float(i)) for i, stage in enumerate(stages)]
  starts.append(StageStart('end', 'end', 99.0))
  plan = plan_interruptions(starts, 50, np.random.default_rng(0))
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
  run = Run(tmp_path / 'one', [], shared)
  rng = np.random.default_rng(0)
  assert damage_file(run, rng) == ''
  for name, step in (('pretrain', 5), ('arms/none', 14), ('arms/none', 16)):
    folder = run.workdir / name / 'checkpoints' / str(step)
    folder.mkdir(parents=True)
    (folder / 'array').write_bytes(bytes(100))
  assert 'arms/none/checkpoints/16/array' in damage_file(run, rng)
  assert (folder.with_name('14') / 'array').read_bytes() == bytes(100)
  (run.workdir / 'arms' / 'none' / 'rounds' / '2').mkdir(parents=True)
  assert 'pretrain/checkpoints/5/array' not in damage_file(run, rng)
  (run.workdir / 'arms' / 'none' / 'rounds' / '2' / 'round.npz').touch()
  assert 'pretrain/checkpoints/5/array' in damage_file(run, rng)
  assert (shared / 'step').read_bytes() == b'code'


def test_a_compiled_program_of_its_own_is_damaged(tmp_path):
  run = Run(tmp_path, [])
  run.programs.mkdir()
  (run.programs / 'step').write_bytes(b'code')
  assert 'xla/step' in damage_file(run, np.random.default_rng(0))
