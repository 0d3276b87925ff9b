"""Measure how long a large folder of images takes to open, the first time and again.

  python -m experiments.bench_folders --at=/dev/shm [--json]

Makes files, 1,000 in each class folder, and removes them. Each figure is of a process of its
own, with its peak memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from absl import app, flags

from experiments.peak_memory import peak_mib
from experiments.timing import exclusive
from sjft_jax.data.folder import ClassFolder
from sjft_jax.data.image_list import ListedImages

AT = flags.DEFINE_string('at', tempfile.gettempdir(), 'Folder in which the files are made.')
CLASSES = flags.DEFINE_integer('classes', 1000, 'Class folders, of 1,000 files each.')
BYTES = flags.DEFINE_integer('bytes', 0, 'Size of each file.')
OPEN = flags.DEFINE_string('open', '', 'Only: open this path, print seconds and peak memory.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')


def measure(path: str) -> None:
  """Open a folder or a list and print how long that took."""
  start_time = time.perf_counter()
  dataset = (ListedImages if path.endswith('.csv') else ClassFolder)(path, '')
  assert dataset.fingerprint  # For this every new file is read.
  seconds = time.perf_counter() - start_time
  print(json.dumps({'files': len(dataset), 'seconds': seconds, 'peak_mib': peak_mib()}))


def write_files(root: Path, classes: int, size: int) -> tuple[Path, Path]:
  """Make files of `size` bytes below `root`; return their folder and a list of them."""
  folder, listing = root / 'images', root / 'list.csv'
  columns: dict[str, list[str]] = {'path': [], 'label': []}
  for number in range(classes):
    name = f'class_{number:04d}'
    (folder / name).mkdir(parents=True)
    for image in range(1000):
      (folder / name / f'{image}.jpg').write_bytes(os.urandom(size))
      columns['path'].append(f'images/{name}/{image}.jpg')
      columns['label'].append(name)
  pa.csv.write_csv(pa.table(columns), listing)
  return folder, listing


def main(_: object) -> None:
  if OPEN.value:
    measure(OPEN.value)
    return
  with tempfile.TemporaryDirectory(dir=AT.value) as root:
    paths = write_files(Path(root), CLASSES.value, BYTES.value)
    time.sleep(3)  # The digest of a file that has just changed is not cached.
    command = [sys.executable, '-m', 'experiments.bench_folders']
    results = {}
    for path in paths:
      environment = {**os.environ, 'XDG_CACHE_HOME': str(Path(root, f'cache of {path.name}'))}
      for turn in ('cold', 'warm'):
        with exclusive():
          opened = subprocess.run(
            [*command, f'--open={path}'], check=True, env=environment, stdout=subprocess.PIPE
          )
        results[f'{path.name}, {turn}'] = row = json.loads(opened.stdout)
        if not JSON.value:
          print(
            f'{path.name}, {turn}: {row["files"]:,} files in {row["seconds"]:.2f} s, '
            f'peak memory {row["peak_mib"]:.0f} MiB',
            flush=True,
          )
    if JSON.value:
      print(json.dumps(results))


if __name__ == '__main__':
  app.run(main)
