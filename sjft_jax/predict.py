"""Classify images with a network that a run has trained.

  python -m sjft_jax.predict --run=runs/mine/arms/rounds --images=DIR --output=predictions.csv
  python -m sjft_jax.predict --run=runs/mine/arms/rounds --images=DIR/test --eval

The images are a folder, which is read at any depth, a list (.csv, .tsv or .parquet with a column
path), or a single file; --images may be given several times. The output has a row for each: image
(its path, below the folder or as in the list if one alone is given), class (the likeliest) and
probability (of that class), and with --top=K the next ones; without --output they are printed.
Images that cannot be read are named, and the others go on.

With --eval the images are a folder DIR/<class>/<image>, or a list with a column label, and the
scores are printed that training prints for its test images. Of a list with several splits,
--split=test scores one.

The network is the one of the run's newest checkpoint; with --fused, the probabilities of the
networks of all rounds are averaged. Images are prepared as the run prepared its test images.
Neither the run's images nor its configuration file are needed, only its work directory, or what
`python -m sjft_jax.export` has made of it: --run=exported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import flags
from etils import epath
from jaxtyping import Float, Int

from sjft_jax import config
from sjft_jax.data.transforms import VIEWS
from sjft_jax.output import tables
from sjft_jax.report import summary
from sjft_jax.runtime import cli, console


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string(
    'run',
    None,
    'Folder of one training, such as runs/mine/arms/rounds, or of an export.',
    required=True,
  )
  flags.DEFINE_multi_string(
    'images',
    None,
    'A folder of images to classify, a list with a column path, or one image; may be repeated.',
    required=True,
  )
  flags.DEFINE_string(
    'output',
    None,
    'File to write, .csv, .tsv, .parquet or .json; one that is there is replaced. Default: a table '
    'is printed.',
  )
  flags.DEFINE_bool(
    'eval', False, 'Score the predictions: the images are in class folders, or a list has labels.'
  )
  flags.DEFINE_string(
    'split', '', 'With --eval, the split of a list, or the sub-folder of a folder, to score.'
  )
  flags.DEFINE_integer('top', 1, 'How many of the likeliest classes to name.', lower_bound=1)
  flags.DEFINE_enum(
    'view',
    None,
    VIEWS,
    "Crops of an image over which probabilities are averaged. Default: the run's first view.",
  )
  flags.DEFINE_bool(
    'fused', False, 'Average the probabilities of the networks that each round ended with.'
  )
  flags.DEFINE_bool('every_class', False, 'Add a column for each class, with its probability.')
  flags.DEFINE_integer(
    'batch_size', None, 'Images classified at once. Default: as in the run.', lower_bound=1
  )
  flags.DEFINE_float(
    'max_bad_share',
    None,
    'Images that cannot be read are left out and named, up to this share of all. Default: any '
    f'share, and with --eval {config.default().screening.max_bad_share}, as in training.',
    lower_bound=0,
    upper_bound=1,
  )
  flags.adopt_module_key_flags(cli)


def main() -> None:
  """Run the command."""
  cli.run_command(predict, 'Stopped. Nothing was written.')


def predict() -> None:
  """Classify the images that the flags name; write or print the classes, and their scores.

  Raises:
    ValueError: impossible flags, before any work, or too many images that cannot be read.
  """
  options = flags.FLAGS
  output = _check_flags()
  # After the flags: --help and a misspelt option should not wait for JAX.
  import sjft_jax
  from sjft_jax.data.image_paths import open_images, open_labelled
  from sjft_jax.runtime import compilation
  from sjft_jax.screening.screen import exclude_unreadable

  compilation.enable_cache()
  images = (
    open_labelled(options.images[0], options.split)
    if options.eval
    else open_images(*options.images)
  )
  classifier = sjft_jax.load(options.run)
  if options.eval:
    labels = _match_classes(images.classes, classifier.classes, options.images[0])
  max_bad_share = options.max_bad_share
  if max_bad_share is None:
    max_bad_share = config.default().screening.max_bad_share if options.eval else 1.0
  bad_images = output and output.with_name(f'{output.name}.bad_images.csv')
  (readable,) = exclude_unreadable((images,), bad_images, max_bad_share=max_bad_share)
  if bad_images and readable is images:  # The list is empty.
    bad_images.unlink(missing_ok=True)
  view = options.view or classifier.views[0]
  p = classifier.predict(readable, view=view, fused=options.fused, batch_size=options.batch_size)

  names = [readable.key(i) for i in range(len(readable))]
  true_labels = labels[readable.labels] if options.eval else None
  columns, values = _make_table(names, p, classifier.classes, true_labels)
  if output:
    tables.write_table(output, columns, [values])
  elif not options.eval:
    summary.print_predictions(list(columns), values)
  count = console.format_count(len(readable), 'image')
  progress = describe_progress(classifier.step, classifier.num_steps, options.fused)
  console.say(f'{output or "In all"}: {count}, {view}, by {classifier.directory}{progress}')
  if true_labels is not None:
    warn_of_training_images(classifier.directory.parent.parent / 'split.csv', names)
    from sjft_jax.results import score

    scores = score(p, true_labels, len(classifier.classes))
    summary.print_scores([(options.run, scores)], count)


def warn_of_training_images(split: epath.Path, names: Sequence[str]) -> None:
  """Print a line if images to score have trained the network, as far as a run's split.csv tells.

  Args:
    split: which images the run has drawn for training and which for testing, if it has.
    names: of the images, below their folder.
  """
  from sjft_jax.results import count_trained

  if count := count_trained(split, names):
    console.say(
      f'  warning: {count:,} of {len(names):,} images are called like training images of the run '
      f'({split}); scores are better on these'
    )


def _check_flags() -> Path | None:
  """Check that the flags fit together and that the output can be written; return its place.

  Raises:
    ValueError: they do not, or it cannot.
  """
  options = flags.FLAGS
  if '' in options.images:
    raise ValueError('--images= is empty; give a folder, a list or an image')
  if options.eval and len(options.images) > 1:
    raise ValueError(f'--eval takes one folder or list; --images has {len(options.images)}')
  if options.split and not options.eval:
    raise ValueError(f'--split={options.split} is for scores; give --eval')
  if options.output is None:
    if options.every_class:
      raise ValueError('--every_class is for a file; give --output')
    if options.eval and options.top > 1:
      raise ValueError(
        f'--top={options.top}: --eval prints scores alone; give --output, or leave --eval out'
      )
    return None
  output = tables.check_output(options.output)
  for path in options.images:
    given = Path(path).expanduser()
    if output.exists() and given.exists() and output.samefile(given):
      raise ValueError(f'--output={output} is the list of images itself; give another name')
  return output


def describe_progress(step: int, num_steps: int, is_fused: bool) -> str:
  """Return how far a network has been trained, in words; '' for a linear probe, without steps."""
  if not num_steps:
    return ''
  return f' after {"each of its rounds" if is_fused else f"{step:,} of {num_steps:,} steps"}'


def _match_classes(
  folder_classes: Sequence[str], classes: Sequence[str], path: str
) -> Int[np.ndarray, ' folder_class']:
  """Return the classifier's label of each class of a labelled folder.

  Raises:
    ValueError: a class is none of the classifier's.
  """
  numbers = {name: number for number, name in enumerate(classes)}
  for name in folder_classes:
    if name not in numbers:
      raise ValueError(
        f'{path} has the class {name!r}, which the network does not know; it knows '
        f'{", ".join(classes[:5])}{", …" if len(classes) > 5 else ""}'
      )
  return np.array([numbers[name] for name in folder_classes])


def _make_table(
  names: Sequence[str],
  p: Float[np.ndarray, 'image category'],
  classes: Sequence[str],
  labels: Int[np.ndarray, ' image'] | None,
) -> tuple[dict[str, pa.DataType], list[Any]]:
  """Return the columns of the output and the values of each.

  Args:
    names: of the images.
    p: their class probabilities.
    classes: the names of the classes.
    labels: the true classes, if they are known.
  """
  options = flags.FLAGS
  class_names = pa.array(classes)
  columns: dict[str, pa.DataType] = {'image': pa.string()}
  values: list[Any] = [names]
  if labels is not None:
    columns['label'] = pa.string()
    values.append(class_names.take(pa.array(labels)))
  # Of equals the first class is the likelier one, as in the scores.
  order = np.argsort(-p, axis=1, kind='stable')
  for rank in range(min(options.top, len(classes))):
    suffix = f' {rank + 1}' if rank else ''
    columns |= {f'class{suffix}': pa.string(), f'probability{suffix}': pa.float32()}
    values.append(class_names.take(pa.array(order[:, rank])))
    values.append(np.take_along_axis(p, order[:, rank : rank + 1], axis=1)[:, 0])
  if options.every_class:
    columns |= {f'probability of {name}': pa.float32() for name in classes}
    values += [*p.T]
  return columns, values


if __name__ == '__main__':
  cli.start(define_flags, main)
