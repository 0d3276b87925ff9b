"""Write the list of Oxford Flowers 102 at 64 × 64 pixels, with its official splits.

  git clone https://github.com/Shmaltalk/colorization-tf
  git -C colorization-tf checkout de236b57
  git clone https://github.com/wallace-zhou/FloralVision
  git -C FloralVision checkout c7675526
  python -m experiments.flowers_list --images=colorization-tf --labels=FloralVision \\
    --output=flowers.csv

The first repository holds all 8,189 images at this size, the second the official files setid.mat
and imagelabels.mat. The list has the columns path, label and split.
"""

import csv
from pathlib import Path

import numpy as np
import scipy.io
from absl import app, flags

IMAGES = flags.DEFINE_string('images', None, 'A clone with all images below it.', required=True)
LABELS = flags.DEFINE_string('labels', None, 'Folder of the .mat files.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'List to write, .csv.', required=True)
SPLITS = {'trnid': 'train', 'valid': 'validation', 'tstid': 'test'}


def main(_: object) -> None:
  numbers = scipy.io.loadmat(Path(LABELS.value, 'setid.mat'))
  labels = scipy.io.loadmat(Path(LABELS.value, 'imagelabels.mat'))['labels'].ravel()
  paths = {path.stem: path.resolve() for path in Path(IMAGES.value).rglob('image_?????.jpg')}
  with open(OUTPUT.value, 'w', newline='') as file:
    rows = csv.writer(file)
    rows.writerow(('path', 'label', 'split'))
    for name, split in SPLITS.items():
      for number in np.ravel(numbers[name]):
        rows.writerow((paths[f'image_{number:05}'], f'{labels[number - 1]:03}', split))


if __name__ == '__main__':
  app.run(main)
