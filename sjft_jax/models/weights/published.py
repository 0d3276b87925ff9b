"""Weights that publishers offer for download, by name; fetched once and verified."""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import IO

import requests

from sjft_jax.runtime import artifacts, console

_MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
  """A weight file on the internet.

  Attributes:
    url: its address.
    checksum: 'sha256:<digits>' or 'md5:<digits>', as many of the first ones as its publisher gives.
  """

  url: str
  checksum: str


def _torchvision(name: str, digits: str) -> PublishedWeights:
  # The names of torchvision's files end in the first digits of their SHA-256.
  return PublishedWeights(
    f'https://download.pytorch.org/models/{name}-{digits}.pth', f'sha256:{digits}'
  )


def _keras(name: str, digits: str) -> PublishedWeights:
  folder = name if name.startswith('vgg') else 'resnet'
  return PublishedWeights(
    f'https://storage.googleapis.com/tensorflow/keras-applications/{folder}/'
    f'{name}_weights_tf_dim_ordering_tf_kernels.h5',
    f'md5:{digits}',
  )


# '_v2' is torchvision's second recipe for a network; 'v2' is the second version of the network.
PUBLISHED = {
  'torchvision/alexnet': _torchvision('alexnet-owt', '7be5be79'),
  'torchvision/resnet18': _torchvision('resnet18', 'f37072fd'),
  'torchvision/resnet34': _torchvision('resnet34', 'b627a593'),
  'torchvision/resnet50': _torchvision('resnet50', '0676ba61'),
  'torchvision/resnet50_v2': _torchvision('resnet50', '11ad3fa6'),
  'torchvision/resnet101': _torchvision('resnet101', '63fe2227'),
  'torchvision/resnet101_v2': _torchvision('resnet101', 'cd907fc2'),
  'torchvision/resnet152': _torchvision('resnet152', '394f9c45'),
  'torchvision/resnet152_v2': _torchvision('resnet152', 'f82ba261'),
  'torchvision/vgg16': _torchvision('vgg16', '397923af'),
  'torchvision/vgg16_bn': _torchvision('vgg16_bn', '6c64b313'),
  'torchvision/vgg19': _torchvision('vgg19', 'dcbb9e9d'),
  'torchvision/vgg19_bn': _torchvision('vgg19_bn', 'c79401a0'),
  'keras/resnet50': _keras('resnet50', '2cb95161c43110f7111970584f804107'),
  'keras/resnet50v2': _keras('resnet50v2', '3ef43a0b657b3be2300d5770ece849e0'),
  'keras/resnet101': _keras('resnet101', 'f1aeb4b969a6efcfb50fad2f0c20cfc5'),
  'keras/resnet101v2': _keras('resnet101v2', '6343647c601c52e1368623803854d971'),
  'keras/resnet152': _keras('resnet152', '100835be76be38e30d865e96f2aaae62'),
  'keras/resnet152v2': _keras('resnet152v2', 'a49b44d1979771252814e80f8ec446f9'),
  'keras/vgg16': _keras('vgg16', '64373286793e3c8b2b4e3219cbf3544b'),
  'keras/vgg19': _keras('vgg19', 'cbe5617147190e668d6c5d5026f83318'),
}


def fetch(name: str) -> Path:
  """Return the verified file of published weights, downloaded on first use to the user's cache.

  Args:
    name: a key of `PUBLISHED`.

  Raises:
    ValueError: the download fails, or the file has the wrong checksum and is deleted.
  """
  published = PUBLISHED[name]
  path = artifacts.cache_dir() / 'weights' / published.url.rpartition('/')[2]
  if not path.is_file():
    try:
      with artifacts.atomic_write(path) as file:
        _download(name, published.url, file)
    except OSError as error:
      reason = error.strerror or type(error).__name__
      raise ValueError(
        f'{published.url} cannot be downloaded ({reason}); fetch it elsewhere and put it at {path}'
      ) from error
  algorithm, digits = published.checksum.split(':')
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, algorithm).hexdigest()
  if not digest.startswith(digits):
    path.unlink()
    raise ValueError(
      f'{path} is deleted: its {algorithm} was {digest[: len(digits)]}, not {digits}, that of '
      f'{published.url}; run again, or fetch that file elsewhere and put it there'
    )
  return path


def _download(name: str, url: str, file: IO[bytes]) -> None:
  with requests.get(url, stream=True, timeout=30) as response:
    response.raise_for_status()
    total = math.ceil(int(response.headers.get('content-length', 0)) / _MEBIBYTE)
    with console.progress(f'{name}, MiB', total) as advance:
      for chunk in response.iter_content(_MEBIBYTE):
        file.write(chunk)
        advance(1)
