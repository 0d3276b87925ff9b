"""Run the rows of one of the paper's tables and set their scores beside the paper's figures.

  python -m experiments.tables --table=2 --list
  python -m experiments.tables --table=2 --scale=small --dry_run
  python -m experiments.tables --table=2 --seeds=3 --workdir=runs/tables
  python -m experiments.tables --table=2 --scale=small --seeds=3 --workdir=runs/tables

The scale `paper` has the paper's data sets, network and steps (see configs/), `small` the same rows
on the demo's textures with a small network and no pretrained weights (see tasks.py; the rows that
need pretrained weights start from a trunk that has learned from the source). Tables 2 and 3 end
with rows that the paper lacks and a sceptic asks for. Rows that differ only in their arm share a
run; runs share what they can. Everything is kept in the work directory: a command that was stopped
goes on, a run that fails does not stop the others, and its rows are listed. With --tuned every arm
has the settings of a tuned.json; rows with another bank, network or pretraining are refused then,
and so are rows whose own option it would replace.
"""

import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.table import Table as RichTable

import sjft_jax
from configs import caltech256, dogs, flowers, indoor
from experiments import tasks
from sjft_jax import inputs, planning, results, tuned_settings
from sjft_jax.config import arm_configs
from sjft_jax.runtime import artifacts, cli, compilation, console

# Options that differ from a configuration, 'section.option' → value.
Changes = dict[str, Any]


class Run(NamedTuple):
  """A training of several arms.

  Attributes:
    config: returns its configuration.
    command: the part of a command line that names the configuration.
    arms: the arms to train.
    changes: options that differ.
  """

  config: Callable[[], ConfigDict]
  command: str
  arms: Sequence[str]
  changes: Changes


class Row(NamedTuple):
  """A row of a table.

  Attributes:
    name: as the paper has it.
    runs: the names of the runs whose predictions it averages, mostly one.
    arm: which arm of the runs.
    paper: the paper's figure, per cent; None: it has none.
    deviation: its standard deviation, or None.
    is_fused: whether the rounds are averaged.
  """

  name: str
  runs: Sequence[str]
  arm: str
  paper: float | None = None
  deviation: float | None = None
  is_fused: bool = False


class Table(NamedTuple):
  """A table of the paper: the score that it gives, its runs by name, and its rows."""

  score: str
  runs: dict[str, Run]
  rows: Sequence[Row]


GABOR = {'bank.name': 'gabor'}


def get_table(number: str, scale: str) -> Table:
  """Return a table of the paper.

  Args:
    number: '1' to '5'.
    scale: 'paper' or 'small'.

  Raises:
    ValueError: the table has no small version.
  """
  if number == '1':
    return _filter_banks(scale)
  if number in '23':
    return _comparison(number, scale)
  if number == '4':
    return _images_per_class(scale)
  if scale == 'small':
    raise ValueError('table 5 compares two sources; there is no small version of it')
  return _sources()


def _task(steps: int = 0) -> Run:
  changes = {'pretrain.steps': steps} if steps else {}
  return Run(tasks.get_config, 'experiments/tasks.py:textures', (), changes)


def _filter_banks(scale: str) -> Table:
  """Return Table 1: filter banks, with a half-width ResNet-50 that learns from the source first."""
  base = Run(lambda: flowers.get_config('table1'), 'configs/flowers.py:table1', (), {})
  if scale == 'small':
    base = _task(steps=1000)
  layers = 'bank.layers'
  banks: dict[str, Changes] = {
    'conv1-2': {},
    'conv1-5': {layers: ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')},
    'conv4-5': {layers: ('conv4', 'conv5')},
    'gabor': GABOR,
  }
  runs = {name: _change(base, ('rounds',), changes) for name, changes in banks.items()}
  runs['conv1-2'] = runs['conv1-2']._replace(arms=('none', 'rounds'))
  return Table(
    'top1',
    runs,
    [
      Row('Fine-tuning w/o source domain', ['conv1-2'], 'none', 88.12),
      Row('Gabor filters', ['gabor'], 'rounds', 88.90),
      Row('AlexNet, conv1 and conv2', ['conv1-2'], 'rounds', 89.59),
      Row('AlexNet, conv1 to conv5', ['conv1-5'], 'rounds', 88.82),
      Row('AlexNet, conv4 and conv5', ['conv4-5'], 'rounds', 88.48),
    ],
  )


def _comparison(number: str, scale: str) -> Table:
  """Return Table 2 (Stanford Dogs) or 3 (Oxford Flowers): what selection is compared with."""
  module, path = (dogs, 'configs/dogs.py') if number == '2' else (flowers, 'configs/flowers.py')
  fine_tuned, scratch = Run(module.get_config, path, (), {}), {'model.pretrained': ''}
  if scale == 'small':
    fine_tuned, scratch = _task(steps=1000), {'pretrain.steps': 0}
  figures = {
    '2': (53.8, 83.4, 80.4, 85.6, 85.5, 88.3, 87.5, 90.2, 90.3),
    '3': (58.2, 80.6, 92.3, 93.4, 93.2, 94.2, 93.8, 94.7, 95.8),
  }[number]
  batch_size = fine_tuned.config().training.batch_size
  arms = ('knn', 'probe', 'none', 'random', 'all', 'similar', 'classes', 'constant', 'rounds')
  runs = {
    'scratch': _change(fine_tuned, ('none', 'rounds'), scratch),
    'fine-tuned': _change(fine_tuned, arms, {}),
    'gabor': _change(fine_tuned, ('rounds',), GABOR),
    # What joint fine-tuning sees in a step; the updates are as many in all rows.
    'as many images': _change(fine_tuned, ('none',), {'training.batch_size': 2 * batch_size}),
    'l2-sp': _change(fine_tuned, ('none',), {'solver.l2_sp': 0.01}),
  }
  rows = [
    Row('Training from scratch using target domain only', ['scratch'], 'none', figures[0]),
    Row('Selective joint training from scratch', ['scratch'], 'rounds', figures[1]),
    Row('Fine-tuning w/o source domain', ['fine-tuned'], 'none', figures[2]),
    Row('Joint fine-tuning with all source samples', ['fine-tuned'], 'all', figures[3]),
    Row('Selective joint FT with random source samples', ['fine-tuned'], 'random', figures[4]),
    Row('Selective joint FT w/o iterative NN retrieval', ['fine-tuned'], 'constant', figures[5]),
    Row('Selective joint FT with Gabor filter bank', ['gabor'], 'rounds', figures[6]),
    Row('Selective joint fine-tuning', ['fine-tuned'], 'rounds', figures[7]),
    Row('with model fusion', ['fine-tuned'], 'rounds', figures[8], is_fused=True),
  ]
  if number == '3' and scale == 'paper':
    validation = {'target.train_split': 'train+validation'}
    runs['with validation'] = _change(fine_tuned, ('rounds',), validation)
    rows.append(Row('Selective joint FT with val set', ['with validation'], 'rounds', 97.0))
  rows += [
    Row('Nearest neighbours on the frozen trunk', ['fine-tuned'], 'knn'),
    Row('Linear probe on the frozen trunk', ['fine-tuned'], 'probe'),
    Row('Joint FT with neighbours by the trunk’s features', ['fine-tuned'], 'similar'),
    Row('Joint FT with whole source classes', ['fine-tuned'], 'classes'),
    Row('Fine-tuning with as many images a step', ['as many images'], 'none'),
    Row('Fine-tuning with L2-SP', ['l2-sp'], 'none'),
  ]
  return Table('mean_class_accuracy', runs, rows)


def _images_per_class(scale: str) -> Table:
  """Return Table 4: Caltech 256 with more and more training images; the seed draws them too."""
  figures = {
    15: ((76.4, 0.1), (80.5, 0.3)),
    30: ((81.2, 0.2), (83.8, 0.5)),
    45: ((83.5, 0.2), (87.0, 0.1)),
    60: ((86.4, 0.3), (89.1, 0.2)),
  }
  runs, rows = {}, []
  # The textures have five training images per class.
  counts = figures if scale == 'paper' else dict(zip((2, 3, 4, 5), figures.values(), strict=True))
  for count, (none, rounds) in counts.items():
    name = f'{count} per class'
    if scale == 'paper':
      config, path = caltech256.get_config, f'configs/caltech256.py:{count}'
      base = Run(lambda config=config, n=str(count): config(n), path, (), {})
    else:
      base = _task()._replace(changes={'target.train_per_class': count})
    runs[name] = _change(base, ('none', 'rounds'), {})
    rows += [
      Row(f'Fine-tuning w/o source domain, {name}', [name], 'none', *none),
      Row(f'Selective joint fine-tuning, {name}', [name], 'rounds', *rounds),
    ]
  return Table('mean_class_accuracy', runs, rows)


def _sources() -> Table:
  """Return Table 5: MIT Indoor 67 with ImageNet, Places or both."""
  runs = {
    source: Run(
      lambda source=source: indoor.get_config(source),
      f'configs/indoor.py:{source}',
      ('none', 'rounds') if source == 'imagenet' else ('rounds',),
      {},
    )
    for source in indoor.SOURCES
  }
  return Table(
    'mean_class_accuracy',
    runs,
    [
      Row('Fine-tuning w/o source domain', ['imagenet'], 'none', 81.7),
      Row('Selective joint FT with ImageNet (i)', ['imagenet'], 'rounds', 82.8),
      Row('Selective joint FT with Places (ii)', ['places'], 'rounds', 85.8),
      Row('Selective joint FT with hybrid data (iii)', ['hybrid'], 'rounds', 85.5),
      Row('Average of the output of (ii) and (iii)', ['places', 'hybrid'], 'rounds', 86.9),
    ],
  )


def _change(run: Run, arms: Sequence[str], changes: Changes) -> Run:
  return run._replace(arms=arms, changes=run.changes | changes)


def make_config(run: Run, seed: int, seeds: int = 1, tuned: str | None = None) -> ConfigDict:
  """Return the configuration of a run with one seed.

  Args:
    run: the run.
    seed: of everything random, and of the target's split where it is drawn.
    seeds: how many there are in all.
    tuned: a tuned.json, whose settings it takes.

  Raises:
    ValueError: the tuned.json was made for other options, has seen test images of other seeds, or
      replaces what the run is about.
  """
  config = run.config()
  config.arms = tuple(run.arms)
  for name, value in run.changes.items():
    section, _, option = name.partition('.')
    config[section][option] = value
  if tuned is not None:
    # Before the seed, which is none of the options that a tuned.json was made for; like repeats,
    # seeds must not be tested on images that it has seen.
    config.repeats = seeds
    config = tuned_settings.apply_tuned(config, tuned)
    config.repeats = 1
    for arm, options in arm_configs(config).items():
      for name, value in run.changes.items():
        section, _, option = name.partition('.')
        if (now := options[section][option]) != value:
          raise ValueError(
            f'tuned={tuned} gives the arm {arm} {name}={now}, but this run is about {name}={value}'
            '; tune without this option, or leave tuned out'
          )
  config.seed = config.target.split_seed = seed
  return config


def command(run: Run, workdir: Path, tuned: str | None = None) -> str:
  """Return the command line that trains a run with seed 0; `tuned` is as for `run`."""
  options = {'arms': ','.join(run.arms)} | run.changes
  shown = [
    f'--config.{name}={",".join(value) if isinstance(value, tuple) else value}'
    for name, value in options.items()
  ]
  words = ['python', '-m', 'sjft_jax.main', f'--config={run.command}', f'--workdir={workdir}']
  words += [f'--tuned={tuned}'] if tuned else []
  return shlex.join([*words, *shown])


def print_cost(config: ConfigDict, tuned: str | None, *, is_whole: bool) -> None:
  """Print about what a run takes, for each seed, by a short calibration (see `planning`).

  Args:
    config: of the run.
    tuned: as for `run`.
    is_whole: whether to print the whole plan.
  """
  try:
    inputs.open_domains(config)
  except (ValueError, OSError, ModuleNotFoundError) as error:
    console.say(f'  data not prepared: {error}')
    return
  try:
    with console.quiet():
      plan = sjft_jax.plan(config, tuned=tuned)
  except (ValueError, OSError, ModuleNotFoundError) as error:
    console.say(f'  no estimate: {error}')
    return
  if is_whole:
    planning.print_plan(plan)
  else:
    console.say(f'  about {console.format_duration(plan.seconds)} for each seed')


def train(runs: dict[str, Run], workdir: Path, seeds: int, tuned: str | None) -> dict[str, str]:
  """Train every run with every seed; return the error of each that failed, by its path."""
  errors = {}
  for seed in range(seeds):
    for name, run in runs.items():
      path = workdir / name / f'seed{seed}'
      console.stage(f'{name}, seed {seed}')
      try:
        sjft_jax.train(make_config(run, seed, seeds, tuned), path)
      except Exception as error:  # The other rows should not wait for this one.
        errors[str(path)] = f'{type(error).__name__}: {error}'.splitlines()[0]
  return errors


def score(
  row: Row, workdir: Path, seed: int, name: str, failed: Collection[str] = ()
) -> float | None:
  """Return the score of a row with one seed in per cent, or None if a run of it is missing.

  Args:
    row, workdir, seed: which one.
    name: of the score.
    failed: paths of runs that count as missing: what lies there was made with other options.
  """
  paths = [workdir / run / f'seed{seed}' for run in row.runs]
  if not all((path / 'results.json').exists() and str(path) not in failed for path in paths):
    return None
  predictions = [
    results.load_predictions(str(path / 'arms' / row.arm), fused=row.is_fused) for path in paths
  ]
  return 100 * results.fuse_predictions(predictions).scores()[name]


def run(table: Table, title: str, workdir: Path, seeds: int, tuned: str | None = None) -> None:
  """Train the runs of a table, print its rows and write table.json into the work directory."""
  errors = train(table.runs, workdir, seeds, tuned)
  shown = RichTable(title=f'{title}, {seeds} seeds, per cent')
  for heading in ('row', 'measured', 'paper'):
    shown.add_column(heading, justify='left' if heading == 'row' else 'right')
  record = []
  for row in table.rows:
    values = [score(row, workdir, seed, table.score, errors) for seed in range(seeds)]
    scores = [value for value in values if value is not None]
    record.append({'row': row.name, 'scores': values, 'paper': row.paper})
    deviation = f' ± {np.std(scores, ddof=1):.1f}' if len(scores) > 1 else ''
    missing = f' ({len(scores)} seeds)' if len(scores) < seeds else ''
    measured = f'{np.mean(scores):.1f}{deviation}{missing}' if scores else '–'
    paper = '' if row.paper is None else f'{row.paper}'
    paper += '' if row.deviation is None else f' ± {row.deviation}'
    shown.add_row(row.name, measured, paper)
  artifacts.write_json(workdir / 'table.json', {'rows': record, 'errors': errors})
  console.print_table(shown)
  for path, error in errors.items():
    console.say(f'{path} failed: {error}')


def define_flags() -> None:
  """Define the flags of this program."""
  flags.DEFINE_enum('table', None, ['1', '2', '3', '4', '5'], 'Table of the paper.', required=True)
  flags.DEFINE_enum('scale', 'paper', ['paper', 'small'], 'Data, network and steps.')
  flags.DEFINE_integer('seeds', 1, 'Seeds of every row.', lower_bound=1)
  flags.DEFINE_string('workdir', 'runs/tables', 'Where everything is kept.')
  flags.DEFINE_string('tuned', None, 'A tuned.json, whose settings all runs take.')
  flags.DEFINE_bool('list', False, 'Print the rows, their runs and about what each takes.')
  flags.DEFINE_bool('dry_run', False, 'As --list, with the whole plan of each run.')


def main() -> None:
  """Do what the command line asks for."""
  options = flags.FLAGS
  table = get_table(options.table, options.scale)
  workdir = Path(options.workdir) / f'{options.scale}{options.table}'
  compilation.enable_cache()
  if options.list or options.dry_run:
    for name, run_ in table.runs.items():
      rows = [row.name for row in table.rows if name in row.runs]
      console.say(f'{name}: {"; ".join(rows)}')
      console.say(f'  {command(run_, workdir / name / "seed0", options.tuned)}')
      print_cost(make_config(run_, 0), options.tuned, is_whole=options.dry_run)
    return
  title = f'Table {options.table}, {options.scale}'
  run(table, title, workdir, options.seeds, options.tuned)


if __name__ == '__main__':
  cli.start(define_flags, lambda: cli.run_command(main, 'Stopped. The same command goes on.'))
