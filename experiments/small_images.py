"""Write the targets of tasks.py and one mixed source, as small JPEG files with their lists.

Clone these repositories into one folder, each at its commit:

  https://github.com/Shmaltalk/colorization-tf                  de236b57   Oxford Flowers 102
  https://github.com/wallace-zhou/FloralVision                  c7675526   its official lists
  https://github.com/MachineLearning2020/Homework2-Caltech101   836044dd   Caltech 101
  https://github.com/marcusklasson/GroceryStoreDataset          fc80ba90   Grocery Store
  https://github.com/thunderInfy/imagewoof                      6338aeea   Imagewoof
  https://github.com/leewssam/NPU-RESISC45-Classification       df2bd5ba   12 classes of RESISC45
  https://github.com/MachineLearning2020/Homework3-PACS         d586a6cf   PACS
  https://github.com/Deo0330/split_minidataset                  557ebcae   mini-ImageNet

  python -m experiments.small_images --clones=DIR --output=runs/small_images

A target's list is flowers.csv, caltech.csv, grocery.csv, dogs.csv, satellite.csv,
satellite_related.csv or flowers_related.csv, with columns path, label and split; with
--targets=dogs,satellite only these are written, and only their repositories and those of the source
are needed. mixed.csv is the source: photographs of objects and animals (mini-ImageNet), drawings
and sketches (PACS) and satellite images, without the classes that a target has as well.
mixed_without_satellite.csv is for the target satellite, and mixed_with_related.csv, whose satellite
images are of the six other classes, for satellite_related. pictures.csv has the demo's source
without its letters, and letters_with_related.csv these letters and the satellite images of
mixed_with_related.csv. letters_with_flowers.csv, which is written with flowers_related, has them
and flowers of the other species.
"""

import csv
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import scipy.io
from absl import app, flags
from rich.progress import track

from sjft_jax.data.demo import DemoDiverse
from sjft_jax.runtime.choice import choose

CLONES = flags.DEFINE_string('clones', None, 'The folder with the clones.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'The folder to write.', required=True)
NAMES = flags.DEFINE_list('targets', None, 'Targets to write; None: all.')

SHORT_SIDE = 72  # Pixels, of which training crops 64.
# golden retriever, dalmatian, cannon, ant, electric guitar, orange, king crab: each in a target.
SHARED_CLASSES = frozenset(
  ('n02099601', 'n02110341', 'n02950826', 'n02219486', 'n03272010', 'n07747607', 'n01981276')
)
# Every second class of RESISC45's twelve, in alphabetical order.
RELATED_TARGET = frozenset(
  ('commercial_area', 'farmland', 'industrial_area', 'lake', 'residential', 'wetland')
)
# Every sixth of the 102 species of flowers.
RELATED_SPECIES = frozenset(f'{number:03}' for number in range(6, 103, 6))


class Image(NamedTuple):
  """One image of a list."""

  path: Path
  label: str
  split: str


def flowers(clones: Path) -> Iterator[Image]:
  """Yield Oxford Flowers 102 with its official training and test images."""
  yield from _flowers(clones, (('trnid', 'train'), ('tstid', 'test')))


def _flowers(clones: Path, splits: Iterable[tuple[str, str]]) -> Iterator[Image]:
  lists = clones / 'FloralVision'
  numbers = scipy.io.loadmat(next(lists.rglob('setid.mat')))
  labels = scipy.io.loadmat(next(lists.rglob('imagelabels.mat')))['labels'].ravel()
  paths = {path.stem: path for path in (clones / 'colorization-tf').rglob('image_?????.jpg')}
  for key, split in splits:
    for number in np.ravel(numbers[key]):
      yield Image(paths[f'image_{number:05}'], f'{labels[number - 1]:03}', split)


def caltech(clones: Path) -> Iterator[Image]:
  """Yield Caltech 101: of every class 10 training images and up to 20 test images."""
  folder = clones / 'Homework2-Caltech101/101_ObjectCategories'
  images = _class_folders(folder, '')
  kept = (image for image in images if image.label != 'BACKGROUND_Google')
  for _, of_class in groupby(_limit(kept, 30), key=lambda image: image.label):
    for number, image in enumerate(of_class):
      yield image._replace(split='train' if number < 10 else 'test')


def grocery(clones: Path) -> Iterator[Image]:
  """Yield Grocery Store: its official test images and up to 10 training images of each class."""
  folder = clones / 'GroceryStoreDataset/dataset'
  for split, limit in (('train', 10), ('test', 1000)):
    rows = [line.split(', ') for line in (folder / f'{split}.txt').read_text().splitlines()]
    yield from _limit((Image(folder / path, f'{int(n):02}', split) for path, n, _ in rows), limit)


def dogs(clones: Path) -> Iterator[Image]:
  """Yield Imagewoof's ten breeds: of each 10 training images and 100 test images."""
  for split, folder, limit in (('train', 'train', 10), ('test', 'val', 100)):
    yield from _limit(_class_folders(clones / 'imagewoof' / folder, split), limit)


def satellite(clones: Path) -> Iterator[Image]:
  """Yield twelve classes of RESISC45: of each 10 training images and 100 test images."""
  folder = clones / 'NPU-RESISC45-Classification/NWPU-RESISC12'
  for split, limit in (('train', 10), ('test', 100)):
    yield from _limit(_class_folders(folder / split, split), limit)


def satellite_related(clones: Path) -> Iterator[Image]:
  """Yield six classes of RESISC45: of each 20 training images and 150 test images."""
  folder = clones / 'NPU-RESISC45-Classification/NWPU-RESISC12'
  for split, limit in (('train', 20), ('test', 150)):
    images = _class_folders(folder / split, split)
    yield from _limit((image for image in images if image.label in RELATED_TARGET), limit)


def flowers_related(clones: Path) -> Iterator[Image]:
  """Yield 17 species of flowers with their official training images and up to 60 test images."""
  images = [image for image in flowers(clones) if image.label in RELATED_SPECIES]
  for split in ('train', 'test'):
    yield from _limit((image for image in images if image.split == split), 60)


def photographs(clones: Path) -> Iterator[Image]:
  """Yield 100 training images of each class of mini-ImageNet that no target has."""
  images = _class_folders(clones / 'split_minidataset/train', '')
  kept = (image for image in images if image.label not in SHARED_CLASSES)
  yield from _limit(kept, 100, first=True)


def drawings(clones: Path) -> Iterator[Image]:
  """Yield the cartoons and sketches of PACS of classes that no target has, up to 700 of each."""
  for domain in ('cartoon', 'sketch'):
    images = _class_folders(clones / 'Homework3-PACS/PACS' / domain, '')
    kept = (image for image in images if image.label not in {'elephant', 'guitar'})
    yield from _limit((i._replace(label=f'{domain} {i.label}') for i in kept), 700)


def satellite_source(clones: Path) -> Iterator[Image]:
  """Yield 300 images of each satellite class."""
  folder = clones / 'NPU-RESISC45-Classification/NWPU-RESISC12/train'
  yield from _limit(_class_folders(folder, ''), 300)


def related_source(clones: Path) -> Iterator[Image]:
  """Yield 550 images of each of the six satellite classes that `satellite_related` lacks."""
  folder = clones / 'NPU-RESISC45-Classification/NWPU-RESISC12/train'
  images = _class_folders(folder, '')
  yield from _limit((image for image in images if image.label not in RELATED_TARGET), 550)


def flowers_source(clones: Path) -> Iterator[Image]:
  """Yield up to 40 images of each of the 85 species that `flowers_related` lacks."""
  images = _flowers(clones, ((key, '') for key in ('trnid', 'valid', 'tstid')))
  yield from _limit((image for image in images if image.label not in RELATED_SPECIES), 40)


TARGETS = {
  f.__name__: f
  for f in (flowers, caltech, grocery, dogs, satellite, satellite_related, flowers_related)
}


def _class_folders(folder: Path, split: str) -> Iterator[Image]:
  for path in sorted(folder.glob('*/*.*')):
    if path.suffix.lower() in {'.jpg', '.jpeg', '.png'}:
      yield Image(path, path.parent.name, split)


def _limit(images: Iterable[Image], limit: int, *, first: bool = False) -> Iterator[Image]:
  """Yield at most `limit` images of each class, by random choice, or the first ones."""
  rng = np.random.default_rng(0)
  for _, group in groupby(sorted(images, key=lambda image: image.label), key=lambda i: i.label):
    of_class = list(group)
    chosen = range(len(of_class)) if first else rng.permutation(len(of_class))
    yield from (of_class[number] for number in chosen[:limit])


def write(name: str, images: Iterable[Image], output: Path) -> list[Image]:
  """Write small copies of images to a folder; return their places in it."""
  folder = output / name
  folder.mkdir(parents=True, exist_ok=True)
  written = []
  for number, image in enumerate(track(list(images), name)):
    pixels = cv2.imread(str(image.path))
    scale = SHORT_SIDE / min(pixels.shape[:2])
    if scale < 1:
      pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    path = folder / f'{number:05}.jpg'
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])
    written.append(image._replace(path=path.relative_to(output)))
  return written


def write_demo(output: Path) -> tuple[list[Image], list[Image]]:
  """Write the demo's source without loss; return the places of its pictures and its letters."""
  source = DemoDiverse()
  (output / 'demo').mkdir(parents=True, exist_ok=True)
  pictures, letters = [], []
  for number in track(range(len(source)), 'demo'):
    path = output / f'demo/{number:05}.png'
    cv2.imwrite(str(path), source[number][..., ::-1])
    is_letter = source.families[number] in source.irrelevant
    image = Image(path.relative_to(output), source.classes[source.labels[number]], '')
    (letters if is_letter else pictures).append(image)
  return pictures, letters


def write_list(path: Path, images: Iterable[Image], *, columns: int) -> None:
  """Write the first columns of images as .csv."""
  with open(path, 'w', newline='') as file:
    rows = csv.writer(file)
    rows.writerows((Image._fields[:columns], *(image[:columns] for image in images)))


def main(_: object) -> None:
  clones, output = Path(CLONES.value), Path(OUTPUT.value)
  names = NAMES.value or TARGETS
  for name in names:
    images = TARGETS[choose('--targets', name, TARGETS)](clones)
    write_list(output / f'{name}.csv', write(name, images, output), columns=3)
  sources = photographs, drawings, satellite_source, related_source
  photographed, drawn, satellites, related = (
    write(source.__name__, source(clones), output) for source in sources
  )
  pictures, letters = write_demo(output)
  lists = {
    'pictures': pictures,
    'letters_with_related': letters + related,
    'mixed': photographed + drawn + satellites,
    'mixed_without_satellite': photographed + drawn,
    'mixed_with_related': photographed + drawn + related,
  }
  if 'flowers_related' in names:
    lists['letters_with_flowers'] = letters + write(
      'flowers_source', flowers_source(clones), output
    )
  for name, images in lists.items():
    write_list(output / f'{name}.csv', images, columns=2)


if __name__ == '__main__':
  app.run(main)
