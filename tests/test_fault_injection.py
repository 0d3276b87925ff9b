"""Test of experiments/fault_injection.py: a run is stopped anywhere and ends as if undisturbed."""

import signal

import numpy as np
import pytest

from experiments.artifact_digests import digest_artifacts
from experiments.fault_injection import find_problems
from experiments.interrupted_run import Interruption, Run, run_to_the_end
from experiments.small_full_run import prepare_command


@pytest.mark.slow
def test_a_run_stopped_in_every_stage_ends_as_an_undisturbed_one(tmp_path):
  # Programs that compile soon.
  network = ('model.name=alexnet', 'model.width=1.0', 'model.fully_connected=False')
  changes = (*network, 'model.pretrained=', 'training.steps=4', "arms=('rounds',)")
  with prepare_command(tmp_path, *changes) as command:
    undisturbed = Run(tmp_path / 'undisturbed', command)
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
    run = Run(tmp_path / 'interrupted', command, undisturbed.programs)
    run_to_the_end(run, sorted(interruptions), stages, rng)
  assert len(run.attempts) > len(interruptions)
  expected = digest_artifacts(undisturbed.workdir)
  assert find_problems(run, expected) == []
