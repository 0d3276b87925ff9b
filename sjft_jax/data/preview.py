"""Draw what descriptors, tests and training see of some images, to look at before a run.

  python -m sjft_jax.data.preview --config=configs/demo.py --output=preview.png

A row shows an image's view for retrieval, its centre crop (with --ten_crop these ten, too) and some
random training views, each with its class and key; classes are spread over the rows. The same
command draws the same picture.
"""

import os
import sys

import numpy as np
import PIL.Image
from absl import flags
from ml_collections import ConfigDict

from sjft_jax.data import registry, transforms
from sjft_jax.data.dataset import Dataset, class_names
from sjft_jax.data.transforms import ImageSize
from sjft_jax.output import image_grid, tables
from sjft_jax.runtime import cli, config_file, console
from sjft_jax.runtime.choice import choose

DOMAINS = ('target', 'source')

_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp', '.gif', '.pdf')
_CAPTION = 20  # Characters of a key that fit below a picture.


def preview_grid(
  data: Dataset,
  *,
  images: int,
  draws: int,
  kind: str,
  seed: int,
  descriptor_size: ImageSize,
  network_size: ImageSize,
  ten_crop: bool = False,
) -> PIL.Image.Image:
  """Draw the views of some images of a data set, one image a row.

  Args:
    data: the data set.
    images: how many images, or all if there are fewer; they lie evenly spread in the order of
      classes.
    draws: training views of each.
    kind: of augmentation, one of `transforms.AUGMENTATIONS`.
    seed: of the training views.
    descriptor_size: of the view for retrieval.
    network_size: of all other views.
    ten_crop: whether to show these evaluation views as well as the centre.

  Raises:
    ValueError: an option is impossible, or an image cannot be read.
  """
  headings = ['retrieval', 'test: centre']
  headings += [f'test: crop {n + 1} of 10' for n in range(10 * ten_crop)]
  headings += [f'training: {kind} {n + 1}' for n in range(draws)]
  size = {'resize': network_size.resize, 'crop': network_size.crop}
  rows = []
  for index in spread_over_classes(data, images):
    image = data[index]
    views = [
      transforms.describe_view(image, resize=descriptor_size.resize, crop=descriptor_size.crop),
      transforms.center_crop(image, **size),
    ]
    if ten_crop:
      views += [*transforms.ten_crop(image, **size)]
    for number in range(draws):
      rng = np.random.default_rng([seed, index, number])
      views.append(transforms.augment(image, rng, kind=kind, **size))
    key = data.key(index)
    if len(key) > _CAPTION:
      key = f'…{key[-_CAPTION:]}'  # Its end distinguishes images of a class.
    rows.append([(view, class_names(data, index), key) for view in views])
  return image_grid.image_grid(rows, headings)


def spread_over_classes(data: Dataset, count: int) -> list[int]:
  """Return the indices of `count` images, or of all, evenly spread in the order of their classes.

  An image with several classes counts for the first of them.
  """
  labels = data.labels.argmax(axis=1) if data.labels.ndim > 1 else data.labels
  order = np.argsort(labels, kind='stable')
  count = min(count, len(order))
  return [int(order[(2 * n + 1) * len(order) // (2 * count)]) for n in range(count)]


def save_preview(
  config: ConfigDict,
  path: str | os.PathLike[str],
  *,
  domain: str,
  images: int,
  draws: int,
  kind: str | None = None,
  ten_crop: bool = False,
) -> None:
  """Save the preview of a configuration as a picture; one that is there is replaced.

  Args:
    config: starts from `config.default`.
    path: the picture to write.
    domain: 'target' or 'source', whose training images to show.
    images, draws, ten_crop: as for `preview_grid`.
    kind: of augmentation; None: the configuration's.

  Raises:
    ValueError: an option is impossible, or the data set or an image cannot be read.
  """
  if choose('domain', domain, DOMAINS) == 'target':
    data, _ = registry.open_target(**config.target)
  else:
    data = registry.load(**config.source)
  page = preview_grid(
    data,
    images=images,
    draws=draws,
    kind=kind or config.training.augment,
    seed=config.seed,
    descriptor_size=ImageSize(resize=config.descriptors.resize, crop=config.descriptors.crop),
    network_size=ImageSize(**config.images),
    ten_crop=ten_crop,
  )
  page.save(path)
  console.say(f'{path}: {domain}, {data.name}')


def define_flags() -> None:
  """Define the flags of this command."""
  config_file.define_flag(sys.argv)
  for module in (cli, config_file):
    flags.adopt_module_key_flags(module)
  flags.DEFINE_string('output', 'preview.png', 'Picture to write; one that is there is replaced.')
  flags.DEFINE_enum('data', 'target', DOMAINS, 'Whose training images.')
  flags.DEFINE_integer('images', 6, 'How many images, one a row.', lower_bound=1)
  flags.DEFINE_integer('draws', 8, 'Random training views of each.', lower_bound=0)
  flags.DEFINE_enum(
    'kind', None, transforms.AUGMENTATIONS, "Augmentation; default: the configuration's."
  )
  flags.DEFINE_bool('ten_crop', False, 'Show the ten evaluation crops as well.')


def main() -> None:
  """Draw what the command line asks for."""
  options = flags.FLAGS

  def draw() -> None:
    save_preview(
      options.config,
      tables.check_output(options.output, _SUFFIXES),
      domain=options.data,
      images=options.images,
      draws=options.draws,
      kind=options.kind,
      ten_crop=options.ten_crop,
    )

  cli.run_command(draw, 'Stopped; nothing was written.')


if __name__ == '__main__':
  cli.start(define_flags, main)
