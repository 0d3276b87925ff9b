"""The base of all builders: a TFDS builder that reads archives and writes as it reads."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer

from sjft_jax.data.builders.archive import Archive, check_archives, find_or_download

# Bytes of records after which a split goes on in another file.
SHARD_SIZE = 2**29


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Do nothing: TFDS would ask its server how it has prepared a data set of the same name."""


class ArchiveBuilder(tfds.core.GeneratorBasedBuilder):
  """A TFDS builder that needs no TensorFlow and keeps the images' bytes as they are.

  A data set is named after the module of its subclass. It is stored as ArrayRecord, in the order of
  the archives, record by record: TFDS's own writer gathers a gigabyte, then needs TensorFlow, and
  reads all of it back to sort it.

  Attributes:
    ARCHIVES: the files that the data set is made of.
  """

  ARCHIVES: ClassVar[tuple[Archive, ...]] = ()
  # Otherwise TFDS would look for its own file of them with a package that need not be installed.
  url_infos: ClassVar[None] = None

  def __init_subclass__(cls, **kwargs: Any):
    cls.name = cls.__module__.rpartition('.')[2]
    # TFDS has some of the names already; `builders.register` puts these classes first.
    super().__init_subclass__(skip_registration=True, **kwargs)

  def __init__(self, *, file_format: Any = None, **kwargs: Any):
    super().__init__(file_format=file_format, **kwargs)
    if not (file_format or self.info.initialized):
      self.info.set_file_format('array_record', override=True)

  def _log_download_bytes(self) -> None:
    """Do nothing: TFDS would log that the size is unknown."""

  def _log_download_done(self) -> None:
    """Do nothing, likewise."""

  def make_info(self, features: dict[str, Any], homepage: str) -> tfds.core.DatasetInfo:
    """Return what `_info` is to return.

    Args:
      features: those of a record, by name.
      homepage: where a person gets the archives.
    """
    return _Info(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label') if 'label' in features else None,
      homepage=homepage,
      # Otherwise records lie in the order of hashed keys.
      disable_shuffling=True,
    )

  def find_archives(self, downloads: tfds.download.DownloadManager, *names: str) -> dict[str, Path]:
    """Find the archives in `manual_dir`, or download them there; return their paths by name.

    Args:
      downloads: has the `manual_dir`.
      names: the archives that are needed; none: all.

    Raises:
      ValueError: one is missing or not the official one.
    """
    archives = [archive for archive in self.ARCHIVES if not names or archive.name in names]
    folder = Path(downloads._manual_dir)  # The public property refuses an empty folder.
    paths = {
      archive.name: find_or_download(archive, folder, self.info.homepage) for archive in archives
    }
    check_archives(archives, paths)
    return paths

  def _generate_splits(
    self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
  ) -> Sequence[tfds.core.SplitInfo]:
    return [
      self._write_split(split, itertools.islice(examples, download_config.max_examples_per_split))
      for split, examples in self._split_generators(dl_manager).items()
    ]

  def _write_split(self, split: str, examples: Iterable[tuple[Any, Any]]) -> tfds.core.SplitInfo:
    """Write the records of a split, in as many files as its size demands."""
    features = self.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    template = self._get_filename_template(split_name=split)
    records = (
      serializer.serialize_example(features.encode_example(example)) for _, example in examples
    )
    parts: list[epath.Path] = []
    lengths: list[int] = []
    num_bytes = 0
    for first in records:
      # The number of files, which is part of their names, is not known yet.
      parts.append(self.data_path / f'{split}.{len(parts)}')
      writer = ArrayRecordWriter(str(parts[-1]), 'group_size:1')
      length = size = 0
      for record in itertools.chain([first], records):
        writer.write(record)
        length, size = length + 1, size + len(record)
        if size >= SHARD_SIZE:
          break
      writer.close()
      lengths.append(length)
      num_bytes += size
    if not parts:
      raise ValueError(f'the archives of {self.name} hold no image of the split {split!r}')
    for i, part in enumerate(parts):
      part.rename(template.sharded_filepath(shard_index=i, num_shards=len(parts)))
    return tfds.core.SplitInfo(
      name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template
    )
