"""Classify images with a network that a run has trained.

  python -m sjft_jax.predict --run=runs/mine/arms/rounds --images=DIR --output=predictions.csv

The images are a folder, which is read at any depth, a list (.csv, .tsv or .parquet with a column
path), or a single file. The output has a row for each: image (its path), class (the likeliest) and
probability (of that class). The network is the one of the run's newest checkpoint; with --fused,
the probabilities of the networks of all rounds are averaged. Images are prepared as the run
prepared its test images. Neither the run's images nor its configuration file are needed, only its
work directory.
"""

from pathlib import Path

import pyarrow as pa
from absl import flags

from sjft_jax import config
from sjft_jax.data.transforms import VIEWS
from sjft_jax.report import tables
from sjft_jax.runtime import cli, console


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string(
    'run', None, 'Folder of one training, such as runs/mine/arms/rounds.', required=True
  )
  flags.DEFINE_string(
    'images',
    None,
    'A folder of images to classify, a list with a column path, or one image.',
    required=True,
  )
  flags.DEFINE_string(
    'output',
    None,
    'File to write, .csv, .tsv or .parquet; one that is there is replaced.',
    required=True,
  )
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
    config.default().screening.max_bad_share,
    'Images that cannot be read are left out and listed, up to this share of the folder.',
    lower_bound=0,
    upper_bound=1,
  )
  flags.adopt_module_key_flags(cli)


def main() -> None:
  """Run the command."""
  cli.run_command(predict, 'Stopped. Nothing was written.')


def predict() -> None:
  """Classify the images that the flags name and write the output.

  Raises:
    ValueError: impossible flags, before any work, or too many images that cannot be read.
  """
  options = flags.FLAGS
  output = Path(options.output)
  tables.check_output(output)
  given = Path(options.images).expanduser()
  if output.exists() and given.exists() and output.samefile(given):
    raise ValueError(f'--output={output} is the list of images itself; give another name')
  # After the flags: --help and a misspelt option should not wait for JAX.
  import sjft_jax
  from sjft_jax.data.folder import open_images
  from sjft_jax.runtime import compilation
  from sjft_jax.screening.screen import exclude_unreadable

  compilation.enable_cache()
  folder = open_images(options.images)
  classifier = sjft_jax.load(options.run)
  bad_images = output.with_name(f'{output.name}.bad_images.csv')
  (images,) = exclude_unreadable((folder,), bad_images, max_bad_share=options.max_bad_share)
  if images is folder:  # The list is empty.
    bad_images.unlink(missing_ok=True)
  view = options.view or classifier.views[0]
  p = classifier.predict(images, view=view, fused=options.fused, batch_size=options.batch_size)

  classes = pa.array(classifier.classes)
  columns = {'image': pa.string(), 'class': pa.string(), 'probability': pa.float32()}
  values = [
    [images.key(i) for i in range(len(images))],
    classes.take(pa.array(p.argmax(axis=1))),
    p.max(axis=1),
  ]
  if options.every_class:
    columns |= {f'probability of {name}': pa.float32() for name in classifier.classes}
    values += [*p.T]
  tables.write_table(output, columns, [values])
  progress = f'{classifier.step:,} of {classifier.num_steps:,} steps'
  console.say(
    f'{output}: {len(images):,} images, {view}, by {classifier.directory} after '
    f'{"each of its rounds" if options.fused else progress}'
  )


if __name__ == '__main__':
  cli.start(define_flags, main)
