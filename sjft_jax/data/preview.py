"""Draws what descriptors, tests and training see of some images, to look at before a run.

  python -m sjft_jax.data.preview --config=configs/demo.py --output=preview.png

A row shows an image's view for retrieval, its evaluation views and some random training views, each
with its class and key; classes are spread over the rows. The same command draws the same sheet.
"""

from collections.abc import Mapping

import numpy as np
import PIL.Image
from absl import flags
from ml_collections import config_flags

from sjft_jax.data import registry, transforms
from sjft_jax.data.dataset import Dataset, class_names
from sjft_jax.report import image_grid
from sjft_jax.runtime import cli, console

_CAPTION = 20  # Characters of a key that fit below a picture.


def preview_grid(
  data: Dataset,
  *,
  images: int,
  draws: int,
  kind: str,
  seed: int,
  describe: Mapping[str, int],
  view: Mapping[str, int],
  ten_crop: bool = False,
) -> PIL.Image.Image:
  """The views of some images of a data set, one image a row.

  Args:
    data: what to show.
    images: how many, or all if there are fewer; they lie evenly spread in the order of classes.
    draws: training views of each.
    kind: of augmentation, see `transforms.augment`.
    seed: of the training views.
    describe: `resize` and `crop` of the view for retrieval, pixels.
    view: those of all others.
    ten_crop: whether to show these evaluation views as well as the centre.

  Raises:
    ValueError: an impossible view, or an image that cannot be read.
  """
  headings = ['retrieval', 'test: centre']
  headings += [f'test: crop {n + 1} of 10' for n in range(10 * ten_crop)]
  headings += [f'training: {kind} {n + 1}' for n in range(draws)]
  rows = []
  for index in spread(data, images):
    image = data[index]
    views = [transforms.describe_view(image, **describe), transforms.center_crop(image, **view)]
    if ten_crop:
      views += [*transforms.ten_crop(image, **view)]
    for number in range(draws):
      rng = np.random.default_rng([seed, index, number])
      views.append(transforms.augment(image, rng, kind=kind, **view))
    key = data.key(index)
    if len(key) > _CAPTION:
      key = f'…{key[-_CAPTION:]}'  # Its end tells images of a class apart.
    rows.append([(shown, class_names(data, index), key) for shown in views])
  return image_grid.image_grid(rows, headings)


def spread(data: Dataset, count: int) -> list[int]:
  """Indices of `count` images, or of all, evenly spread in the order of their classes."""
  labels = data.labels.argmax(axis=1) if data.labels.ndim > 1 else data.labels
  order = np.argsort(labels, kind='stable')
  count = min(count, len(order))
  return [int(order[(2 * n + 1) * len(order) // (2 * count)]) for n in range(count)]


def define_flags() -> None:
  """Define the flags of this command."""
  flags.adopt_module_key_flags(cli)
  config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/; its options change by name: --config.images.crop=128.'
  )
  flags.mark_flag_as_required('config')
  flags.DEFINE_string('output', 'preview.png', 'Picture to write; one that is there is replaced.')
  flags.DEFINE_enum('data', 'target', ('target', 'source'), 'Whose training images.')
  flags.DEFINE_integer('images', 6, 'How many images, one a row.', lower_bound=1)
  flags.DEFINE_integer('draws', 8, 'Random training views of each.', lower_bound=0)
  flags.DEFINE_enum(
    'kind', None, transforms.AUGMENTATIONS, "Augmentation; default: the configuration's."
  )
  flags.DEFINE_bool('ten_crop', False, 'Show the ten evaluation crops as well.')


def draw() -> None:
  """The command's work, once its flags are read."""
  options, config = flags.FLAGS, flags.FLAGS.config
  if options.data == 'target':
    data, _ = registry.open_target(**config.target)
  else:
    data = registry.load(**config.source)
  describe, view = (
    {name: config[section][name] for name in ('resize', 'crop')}
    for section in ('descriptors', 'images')
  )
  page = preview_grid(
    data,
    images=options.images,
    draws=options.draws,
    kind=options.kind or config.training.augment,
    seed=config.seed,
    describe=describe,
    view=view,
    ten_crop=options.ten_crop,
  )
  page.save(options.output)
  console.say(f'{options.output}: {options.data}, {data.name}')


def main() -> None:
  """Draw what the command line asks for."""
  cli.config_file()
  cli.run_command(draw, 'Stopped; nothing was written.')


if __name__ == '__main__':
  cli.start(define_flags, main)
