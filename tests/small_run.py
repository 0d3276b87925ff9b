"""A run of all stages on a few striped images, for tests of whole runs."""

import sys

import cv2
import numpy as np

from sjft_jax import config
from sjft_jax.runtime import console

# So little of everything that a run consists mostly of compiling.
SMALL = {
  'arms': ('none', 'rounds'),
  'bank.layers': ('conv1',),
  'descriptors.resize': 40,
  'descriptors.crop': 36,
  'descriptors.num_bins': 8,
  'selection.num_neighbors': 3,
  'selection.rounds': 3,
  'model.name': 'alexnet',
  'model.fully_connected': False,
  'model.pretrained': '',
  'pretrain.steps': 3,
  'images.resize': 36,
  'images.crop': 32,
  'training.steps': 3,
  'training.batch_size': 4,
  'training.accumulation': 1,
  'training.checkpoint_every': 2,
  'evaluation.batch_size': 8,
}


def write_folder(path, classes, per_class, seed):
  """Write a folder of images whose classes differ in the direction and width of their stripes."""
  rng = np.random.default_rng(seed)
  for number in range(classes):
    folder = path / f'stripes {number}'
    folder.mkdir(parents=True)
    y, x = np.mgrid[:40, :44]
    along = x * np.cos(number) + y * np.sin(number)
    for image in range(per_class):
      wave = 128 + 60 * np.sin(along / (1 + number % 3) + rng.uniform(0, 6))
      pixels = wave[..., None] + rng.normal(0, 20, (40, 44, 3))
      cv2.imwrite(str(folder / f'{image}.png'), np.clip(pixels, 0, 255).astype(np.uint8))


def write_data(path):
  """Write a target, with training and test images, and a source below `path`; return `path`."""
  write_folder(path / 'target' / 'train', 3, 4, seed=0)
  write_folder(path / 'target' / 'test', 3, 3, seed=1)
  write_folder(path / 'source' / 'train', 6, 8, seed=2)
  return path


def overrides(data):
  """Return the options of the run, 'section.option' → value, on the data of `write_data`."""
  return SMALL | {'target.path': str(data / 'target'), 'source.path': str(data / 'source')}


def make_config(data, **changes):
  """Return the configuration of the run; `changes` are named 'section.option' like `overrides`."""
  return change(config.default(), overrides(data) | changes)


def change(options, changes):
  """Set the options that `changes` names 'section.option'; return the configuration."""
  for name, value in changes.items():
    section, _, option = name.rpartition('.')
    (options[section] if section else options)[option] = value
  return options


def command(data, workdir, *more):
  """Return the command line of the run."""
  options = [f'--config.{name}={value}' for name, value in overrides(data).items()]
  return [
    *(sys.executable, '-m', 'sjft_jax.main', '--config=configs/folder.py'),
    *(f'--workdir={workdir}', '--config.evaluation.views=("center",)', *options, *more),
  ]


def interrupt_at(patch, function, title):
  """Interrupt the run as soon as it prints `title` through this function of the console."""
  show = getattr(console, function)

  def show_and_interrupt(text):
    show(text)
    if title in text:
      raise KeyboardInterrupt

  patch.setattr(console, function, show_and_interrupt)
