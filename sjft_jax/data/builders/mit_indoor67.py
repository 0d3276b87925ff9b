"""MIT Indoor 67 (Quattoni and Torralba 2009): 80 images a class to train on, 20 to test on."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive, labelled_members, read_lines
from sjft_jax.data.builders.base import ArchiveBuilder

_URL = 'https://web.mit.edu/torralba/www/'


class Builder(ArchiveBuilder):
  """Classes are the rooms. The official lists leave out most of the archive's 15,620 images."""

  VERSION = tfds.core.Version('1.0.0')
  ARCHIVES = (
    Archive(
      'indoorCVPR_09.tar',
      'http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar',
      2_592_010_240,
    ),
    Archive('TrainImages.txt', _URL + 'TrainImages.txt'),
    Archive('TestImages.txt', _URL + 'TestImages.txt'),
  )
  # The images of the official lists, which come without checksums.
  NUM_IMAGES: Mapping[str, int] = {'train': 5360, 'test': 1340}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.make_info(
      {
        'image': tfds.features.Image(),
        'label': tfds.features.ClassLabel(num_classes=67),
        'file_name': tfds.features.Text(),
      },
      _URL + 'indoor.html',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    paths = self.find_archives(dl_manager)
    rooms = {
      split: {
        f'Images/{file}': PurePosixPath(file).parent.name
        for file in read_lines(paths[f'{split.title()}Images.txt'])
      }
      for split in ('train', 'test')
    }
    for split, names in rooms.items():
      others = rooms['test' if split == 'train' else 'train']
      if len(names) != self.NUM_IMAGES[split] or names.keys() & others.keys():
        raise ValueError(
          f'{paths[f"{split.title()}Images.txt"]} names {len(names):,} images, the official list '
          f'{self.NUM_IMAGES[split]:,} that are not in the other list; remove it and get it again'
        )
    self.info.features['label'].names = sorted(set(rooms['train'].values()))
    return {
      split: self._generate_examples(paths['indoorCVPR_09.tar'], split_rooms)
      for split, split_rooms in rooms.items()
    }

  def _generate_examples(
    self, path: Path, rooms: Mapping[str, str]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, image, room in labelled_members(path, rooms):
      file = name.removeprefix('Images/')
      yield file, {'image': image, 'label': room, 'file_name': file}
