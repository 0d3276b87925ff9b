"""Prepare a data set of the paper from its official archives.

  python -m sjft_jax.data.prepare --dataset=stanford_dogs --archives=DIR

The archives are looked for in `--archives` under their official names; one that is not there is
downloaded to it, if it has a public address. All are checked against their published sizes and
checksums. The images are kept as they are, in TFDS's folders and as ArrayRecord, so that
`tfds.data_source` reads them too. TensorFlow is not needed. A run that is stopped leaves nothing
but the archives it has downloaded.
"""

from pathlib import Path

from absl import flags

from sjft_jax.runtime import artifacts, cli, console
from sjft_jax.runtime.choice import choose


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string(
    'dataset',
    None,
    "TFDS's name, such as stanford_dogs, or coco/2014 where there are several configurations.",
    required=True,
  )
  flags.DEFINE_string(
    'archives', None, 'Folder of the official archives. Default: data_dir/downloads/manual.'
  )
  flags.DEFINE_string(
    'data_dir',
    '',
    'Where data_dir/dataset/version will be written; what a configuration calls path. Default: '
    'that of TFDS, $TFDS_DATA_DIR or ~/tensorflow_datasets.',
  )
  flags.adopt_module_key_flags(cli)


def main() -> None:
  """Prepare what the command line asks for."""
  options = flags.FLAGS
  cli.run_command(
    lambda: prepare(options.dataset, options.data_dir, options.archives),
    'Stopped; nothing was prepared.',
  )


def prepare(dataset: str, data_dir: str, archives: str | None = None) -> None:
  """Write `data_dir/dataset/[config/]version`, unless it is there.

  Args:
    dataset: a name in `builders.BUILDERS`, with '/config' where there are several.
    data_dir: where to write; '': TFDS's own directory.
    archives: folder of the official archives; `data_dir/downloads/manual` by default.

  Raises:
    ValueError: the data set is unknown, an archive is missing, damaged or not the official one, or
      TFDS has prepared the data set in another format.
  """
  # Here, after the flags: --help and a misspelt option should not wait for TFDS.
  import tensorflow_datasets as tfds

  from sjft_jax.data import builders, records

  name, _, config = dataset.partition('/')
  builder_cls = builders.load(choose('dataset', name, builders.BUILDERS))
  full_names = [f'{name}/{config}' for config in builder_cls.builder_configs] or [name]
  choose('dataset', f'{name}/{config}' if config else name, full_names)
  if archives and not Path(archives).is_dir():
    raise ValueError(f'archives={archives} is not a folder; create it')
  builder = builder_cls(data_dir=data_dir or None, config=config or None)
  folder = builder.data_path
  for leftover in artifacts.glob(folder.parent, f'incomplete.*_{folder.name}'):
    console.say(f'  unless another run is at work, {leftover} is left of a killed one: remove it')
  if builder.info.initialized:
    records.check_format(builder.info.file_format, folder, dataset)
    console.say('  prepared already')
  elif folder.exists():
    raise ValueError(f'{folder} is there, but not a prepared data set; remove it')
  else:
    tfds.disable_progress_bar()  # The archives have their own.
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=archives, try_download_gcs=False)
    )
  splits = (f'{split} {info.num_examples:,}' for split, info in builder.info.splits.items())
  console.say(f'{folder}: {", ".join(splits)} images')


if __name__ == '__main__':
  cli.start(define_flags, main)
