"""Run a configuration with several seeds and splits, as for the paper's Table 4."""

import math
import os
from typing import Any

import numpy as np
from etils import epy
from ml_collections import ConfigDict

from sjft_jax import pipeline
from sjft_jax import workdir as workdirs
from sjft_jax.report import summary
from sjft_jax.runtime import artifacts, console, distributed

with epy.lazy_imports():
  import scipy.stats


def run(
  config: ConfigDict,
  workdir: str | os.PathLike[str],
  *,
  resume_with_changes: bool = False,
  stop_after: str = '',
  profile_steps: int = 0,
) -> dict[str, Any]:
  """Run a configuration `config.repeats` times; called again, go on from where it was stopped.

  Repeat i = 0, 1, … has the seed `config.seed` + i and, where the target's training images are
  drawn, the split seed `config.target.split_seed` + i. Each is a work directory of its own,
  `<workdir>/repeat<i + 1>`; what is the same in all (the look at every image, and the ranking if
  the training images are the same) is made once.

  Args:
    config: starts from `config.default`. With `repeats=1`, this is `pipeline.run`. More repeats
      than the work directory was made with are added to those that are there.
    workdir: a path, or gs://bucket/path.
    resume_with_changes, stop_after: as in `pipeline.run`.
    profile_steps: as in `pipeline.run`, of the first repeat.

  Returns:
    What results.json holds: of one run, or the mean and the standard deviation over the repeats.
    Nothing, if all ended after a stage.

  Raises:
    ValueError: as `pipeline.run` does.
  """
  if config.repeats == 1:
    return pipeline.run(
      config,
      workdir,
      resume_with_changes=resume_with_changes,
      stop_after=stop_after,
      profile_steps=profile_steps,
    )
  directory = workdirs.resolve(workdir)
  same = config.copy_and_resolve_references()
  earlier = (workdirs.load_config(directory) or {}).get('repeats', 1)
  if 1 < earlier < config.repeats:  # More of the same: those that are there stay as they are.
    same.repeats = earlier
  workdirs.check_unchanged(same, directory, resume_with_changes=resume_with_changes)
  finished: list[Any] = []
  results: list[dict[str, Any]] = []
  for number in range(config.repeats):
    single = config.copy_and_resolve_references()
    single.repeats = 1
    single.seed = config.seed + number
    single.target.split_seed = config.target.split_seed + number
    console.stage(f'Repeat {number + 1} of {config.repeats}, seed {single.seed}')
    path = directory / f'repeat{number + 1}'
    results.append(
      pipeline.run(
        single,
        path,
        resume_with_changes=resume_with_changes,
        earlier_runs=finished,
        stop_after=stop_after,
        profile_steps=0 if number else profile_steps,
      )
    )
    finished.append(path)
    # Not before: the options have proved possible.
    if not number and distributed.is_primary_process():
      workdirs.save_config(same, directory)
  if not all(results):  # Each ended after a stage.
    return {}
  summarized = summarize(results)
  if distributed.is_primary_process():
    if same.repeats < config.repeats:  # Not before: fewer can be asked for again until then.
      workdirs.save_config(config, directory)
    artifacts.write_json(directory / 'results.json', summarized)
  summary.print_repeats(summarized)
  return summarized


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
  """Summarise the results of all repeats: every row of the closing table as mean and deviation.

  Args:
    results: what `pipeline.run` returned for each repeat.

  Returns:
    'seeds', 'view', 'test_images', and 'table': rows with 'name' and 'source_images', and each
    score and gain as `spread` has it.
  """
  rows = []
  for position, row in enumerate(results[0]['table']):
    same = [result['table'][position] for result in results]
    source_images = float(np.mean([r['source_images'] for r in same]))
    summarized = {'name': row['name'], 'source_images': round(source_images)}
    for score in ('mean_class_accuracy', 'top1', 'cross_entropy', 'fused', 'gain'):
      if score in row:
        summarized[score] = spread([r[score] for r in same])
    rows.append(summarized)
  return {
    'seeds': [result['seed'] for result in results],
    'view': results[0]['view'],
    'test_images': results[0]['test_images'],
    'table': rows,
  }


def spread(values: list[float]) -> dict[str, Any]:
  """Return mean, standard deviation, the mean's 95 % interval (Student's t) and the values."""
  mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
  half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
  return {
    'mean': mean,
    'standard_deviation': deviation,
    'interval': [mean - half, mean + half],
    'values': values,
  }
