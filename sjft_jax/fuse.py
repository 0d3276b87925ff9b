"""Average the predictions of several runs on the same test images (the paper's Table 5, last row).

  python -m sjft_jax.fuse --run=runs/mine/arms/rounds --run=runs/tuned/arms/rounds

Every run is an arm of a work directory, finished, with the same test images in the same classes.
Nothing is computed again: the class probabilities that the runs have scored are averaged, those of
each run's last round or, with --fused, of all its rounds. The table shows each run by itself and
their average; with --output, a row for each test image is written as well, in the columns of
`predict --eval --every_class`: image, label (its class), class (the likeliest), probability (of
that class) and the probability of every class. The paper's fusion of the rounds of one run needs no
command: every closing table has it.
"""

import os
from collections.abc import Sequence

import pyarrow as pa
from absl import flags

from sjft_jax.data.transforms import VIEWS
from sjft_jax.output import tables
from sjft_jax.runtime import artifacts, cli


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_multi_string(
    'run', None, 'An arm, such as runs/mine/arms/rounds; given once for each run.', required=True
  )
  flags.DEFINE_enum('view', None, VIEWS, 'Evaluation view. Default: the first of the first run.')
  flags.DEFINE_bool('fused', False, 'Average the rounds of each run first.')
  flags.DEFINE_string('output', None, 'File to write: .csv, .tsv, .parquet or .json.')
  flags.adopt_module_key_flags(cli)


def main() -> None:
  """Average what the command line asks for."""
  cli.run_command(fuse, 'Stopped. Nothing was written.')


def fuse() -> None:
  """Average by the flags, print the scores, and write the output.

  Raises:
    ValueError: a run is given twice or is not finished, or the runs were tested on different
      images.
  """
  options = flags.FLAGS
  check_distinct(options.run)
  if options.output:
    tables.check_output(options.output)
  # After the flags: --help and a misspelt option should not wait for JAX.
  from sjft_jax import results
  from sjft_jax.report import summary

  first, *others = options.run
  runs = [results.load_predictions(first, options.view, options.fused)]
  # Others may have another view first.
  runs += [results.load_predictions(run, runs[0].view, options.fused) for run in others]
  fused = results.fuse_predictions(runs)
  shown = [*runs, fused] if others else runs
  rows = [(run.name, run.scores()) for run in shown]
  summary.print_scores(rows, f'{len(fused.images):,} test images')
  if options.output:
    p, names = fused.probabilities, pa.array(fused.classes)
    columns = {'image': pa.string(), 'label': pa.string(), 'class': pa.string()}
    columns |= {'probability': pa.float32()}
    columns |= {f'probability of {name}': pa.float32() for name in fused.classes}
    true_classes, likeliest = (names.take(pa.array(i)) for i in (fused.labels, p.argmax(axis=1)))
    values = [fused.images, true_classes, likeliest, p.max(axis=1), *p.T]
    tables.write_table(options.output, columns, [values])


def check_distinct(runs: Sequence[str]) -> None:
  """Check that no run is given twice, which would count twice in the average.

  Raises:
    ValueError: one is.
  """
  folders: dict[str, str] = {}
  for run in runs:
    path = artifacts.absolute_path(run)
    # Only on a disk can one folder have several paths.
    folder = str(path) if artifacts.is_remote(path) else os.path.realpath(path)
    if folder in folders:
      raise ValueError(f'--run={run} and --run={folders[folder]} are one run; give it once')
    folders[folder] = run


if __name__ == '__main__':
  cli.start(define_flags, main)
