"""Start the command that opens a data set, on images written for it."""

import os
import sys

import cv2
import numpy as np
from commands import ROOT, start


def write(folder, *names, shape=(40, 40, 3)):
  """Write a picture of noise under each name."""
  for name in names:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = [*name.encode()]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    file.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())


def preview(path, *options, data='target', images=1, cwd=ROOT, python_path=(), **environment):
  """Start the command that opens a data set and draws a few images.

  Folders of `python_path` come before all others where Python looks for packages.
  """
  options = [f'--config.{data}.path={path}', *(f'--config.{option}' for option in options)]
  module = f'cd {cwd} && exec {sys.executable} -m sjft_jax.data.preview "$@"'
  output = os.path.join(environment['HOME'], 'preview.png')
  config = f'--config={ROOT}/configs/folder.py'
  arguments = [
    config,
    f'--data={data}',
    f'--output={output}',
    f'--images={images}',
    '--draws=0',
    *options,
  ]
  python_path = os.pathsep.join(map(str, (*python_path, ROOT)))
  environment |= {'PYTHONPATH': python_path, 'XDG_CACHE_HOME': f'{environment["HOME"]}/cache'}
  return start(['sh', '-c', module, 'sh', *arguments], **environment)


def output(process):
  """Return what a command prints that ends well."""
  text, errors = process.communicate(timeout=300)
  assert (process.returncode, errors) == (0, '')
  return text.replace('\n', '')
