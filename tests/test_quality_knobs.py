"""What the study of the descriptor's options measures; its flags need a process of their own."""

import sys

import commands
import pytest

SCRIPT = """
import pathlib, sys
import numpy as np
from etils import epath
from experiments import quality_knobs
from sjft_jax import results
from sjft_jax.runtime import artifacts

def run(domains, config, workdir):
  count = config.selection.rounds
  labels, classes = domains.test.labels, domains.test.classes
  rounds = []
  for number in range(count):
    p = np.full((len(labels), len(classes)), 1e-6, np.float32)
    right = number == count - 1  # The last round alone is right.
    p[np.arange(len(labels)), labels if right else (labels + 1) % len(classes)] = 1
    round_ = results.Round(np.ones(3, int), 1, np.ones(3), np.ones(3, bool), {'ten_crop': p}, 1.0)
    rounds.append(round_)
    artifacts.save(
      workdir / 'arms/constant/rounds' / str(number + 1) / 'round.npz', 'x', **{'test/ten_crop': p}
    )
  results.save_test_images(workdir, 'x', domains.test)
  artifacts.save(workdir / 'ranking.npz', 'x')
  saved = {'fingerprint': 'x', 'seed': 0, 'device': 'd', 'seconds': {}}
  unreadable = dict.fromkeys(('target', 'test', 'source'), 0)
  saved['left_out'] = {'unreadable': unreadable, 'duplicates': 0}
  saved |= results.summarize({'constant': rounds}, domains.test, ('ten_crop',))
  artifacts.write_json(workdir / 'results.json', saved)
  return saved

quality_knobs.pipeline.run_on_datasets = run
folder = pathlib.Path(sys.argv[1])
row = quality_knobs.measure_accuracy('default', 0, folder / 'rankings', folder / 'now')
print(row['mean_class_accuracy'], min(row['is_correct']))
"""


@pytest.mark.slow
def test_accuracy_is_that_after_the_last_round(tmp_path):
  command = [sys.executable, '-c', SCRIPT, str(tmp_path)]
  output, errors = commands.start(command).communicate(timeout=300)
  assert output.split() == ['1.0', '1'], errors
