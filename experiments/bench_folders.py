"""How long a large folder of images takes to open, the first time and again.

  python -m experiments.bench_folders --at=/dev/shm

Makes files, 1,000 in each class folder, and removes them. Each figure is of a process of its
own, with its peak memory.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from absl import app, flags

from sjft_jax.data.folder import ClassFolder, ListedImages

AT = flags.DEFINE_string('at', tempfile.gettempdir(), 'Where the files are made.')
CLASSES = flags.DEFINE_integer('classes', 1000, 'Class folders, of 1,000 files each.')
BYTES = flags.DEFINE_integer('bytes', 0, 'Size of each file.')
OPEN = flags.DEFINE_string('open', '', 'Only: open this, print seconds and peak memory.')


def measure(path):
  begun = time.perf_counter()
  data = (ListedImages if path.endswith('.csv') else ClassFolder)(path, '')
  assert data.fingerprint  # For this every new file is read.
  seconds = time.perf_counter() - begun
  (peak,) = re.findall(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
  print(f'{len(data):,} files in {seconds:.2f} s, peak memory {int(peak) // 1024} MiB')


def main(_):
  if OPEN.value:
    return measure(OPEN.value)
  with tempfile.TemporaryDirectory(dir=AT.value) as root:
    rows = {'path': [], 'label': []}
    for c in range(CLASSES.value):
      folder = Path(root, 'images', f'class_{c:04d}')
      folder.mkdir(parents=True)
      for i in range(1000):
        (folder / f'{i}.jpg').write_bytes(os.urandom(BYTES.value))
        rows['path'].append(f'images/{folder.name}/{i}.jpg')
        rows['label'].append(folder.name)
    listing = Path(root, 'list.csv')
    pa.csv.write_csv(pa.table(rows), listing)
    time.sleep(3)  # The digest of a file that has just changed is not cached.
    command = [sys.executable, '-m', 'experiments.bench_folders']
    for path in (Path(root, 'images'), listing):
      for turn in ('cold', 'warm'):
        print(f'{path.name}, {turn}:', end=' ', flush=True)
        environment = {**os.environ, 'XDG_CACHE_HOME': str(Path(root, f'cache of {path.name}'))}
        subprocess.run([*command, f'--open={path}'], check=True, env=environment)


if __name__ == '__main__':
  app.run(main)
