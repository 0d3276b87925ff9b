"""A small run that has everything: a download, screening, ranking, pretraining and three arms."""

import functools
import hashlib
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from experiments.class_folders import write_class_folders
from sjft_jax.models import trunk
from sjft_jax.models.weights.layouts import layouts

NETWORK = {'name': 'resnet18v1', 'width': 1 / 16}
OPTIONS = """
bank.layers=('conv1',) descriptors.resize=40 descriptors.crop=36 descriptors.num_bins=8
descriptors.batch_size=8 descriptors.checkpoint_minutes=1e-6
selection.num_neighbors=3 selection.rounds=2
model.name=resnet18v1 model.width=0.0625 model.pretrained=local/net pretrain.steps=5
images.resize=36 images.crop=32
training.steps=8 training.batch_size=4 training.accumulation=1 training.checkpoint_every=2
evaluation.batch_size=8 evaluation.views=('center',) arms=('none','constant','rounds')
"""
ARMS, ROUNDS = ('none', 'constant', 'rounds'), 2
# The command of the README, with one more published network: its address and checksum come first.
PROGRAM = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # Where this runs in the background too.
from sjft_jax.models.weights import published
published.PUBLISHED['local/net'] = published.PublishedWeights(*sys.argv[1:3])
del sys.argv[1:3]
runpy.run_module('sjft_jax.main', run_name='__main__', alter_sys=True)
"""


def write_weights(path: Path) -> None:
  """Write a network of random weights with torchvision's names."""
  body = trunk.build_trunk(**NETWORK, style='torch', fully_connected=True)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(body.init, jax.random.key(0), image)
  names = layouts(NETWORK['name'], 'torch')[0].names
  kinds = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
  rng = np.random.default_rng(0)
  tensors = {'fc.weight': rng.normal(0, 1, (5_000, 32))}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
    _, *layer, kind = (key.key for key in keys)
    shape = [leaf.shape[axis] for axis in (3, 2, 0, 1)] if kind == 'kernel' else leaf.shape
    values = rng.uniform(0.5, 1.5, shape) if kind in ('scale', 'var') else rng.normal(0, 0.1, shape)
    tensors[f'{names["/".join(layer)]}.{kinds.get(kind, kind)}'] = values
  tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
  safetensors.numpy.save_file(tensors, path)


@contextmanager
def serve_slowly(file: Path) -> Iterator[str]:
  """Yield the address of a file, at a server that takes a second to send it."""
  content = file.read_bytes()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
      self.send_response(200)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      with suppress(OSError):  # The receiver has been killed.
        for start in range(0, len(content), 1 + len(content) // 50):
          self.wfile.write(content[start : start + 1 + len(content) // 50])
          time.sleep(0.02)

    def log_message(self, *_: object) -> None:
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.1,)).start()
    try:
      yield f'http://127.0.0.1:{server.server_port}/{file.name}'
    finally:
      server.shutdown()


@contextmanager
def prepare_command(folder: Path, *changes: str) -> Iterator[list[str]]:
  """Yield the command without the work directory; its inputs are written to the folder.

  Args:
    folder: is there already.
    changes: options that differ from `OPTIONS`.
  """
  weights = folder / 'net.safetensors'
  write_weights(weights)
  write_images = functools.partial(write_class_folders, height=40, width=44, suffix='.png')
  write_images(folder / 'target' / 'train', 3, 4, seed=0)
  write_images(folder / 'target' / 'test', 3, 3, seed=1)
  write_images(folder / 'source' / 'train', 6, 40, seed=2)
  checksum = f'sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}'
  paths = [f'{domain}.path={folder / domain}' for domain in ('target', 'source')]
  options = dict(option.split('=', 1) for option in (*OPTIONS.split(), *paths, *changes))
  with serve_slowly(weights) as address:
    command = [sys.executable, '-c', PROGRAM, address, checksum, '--config=configs/folder.py']
    yield command + [f'--config.{name}={value}' for name, value in options.items()]
