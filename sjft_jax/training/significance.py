"""The gain of one classifier over another on the same test images, and whether it may be chance."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# A gain is called more than chance if the p-value of the permutation test is below this.
LEVEL = 0.05
# With so many permutations a p-value of 0.05 is found within 0.005.
NUM_PERMUTATIONS = 9_999
# Signs that are drawn at once.
_BLOCK = 2**22


class PairedGain(NamedTuple):
  """A gain in mean class accuracy, as a share (0.01 is one point).

  Attributes:
    gain: the difference of the two accuracies.
    standard_error: of drawing other test images; 0 only where both classify every image alike.
    p_value: of the two-sided paired permutation test of no difference.
  """

  gain: float
  standard_error: float
  p_value: float


def paired_gain(
  is_correct: Bool[np.ndarray, ' image'],
  baseline_is_correct: Bool[np.ndarray, ' image'],
  labels: Int[np.ndarray, ' image'],
  *,
  seed: int = 0,
) -> PairedGain:
  """Compare two classifiers on the same test images.

  The gain is the mean over classes of the mean difference d of an image, which is 1, 0 or −1.

  The test asks how often a gain as large in size comes about if it is a coin's choice, image by
  image, which of the two classifiers was right: under no difference the two are exchangeable. It is
  exact for any number of images, of classes, and of images in a class. Images that both classify
  alike do not count.

  The standard error takes the deviations of d from the overall gain, weighted as the images are:
  √(N/(N−1) · Σ w² (d − gain)²) with w = 1 / (classes · images in the class). A variance within each
  class would be 0 in classes with one image. Differences between classes add to it, so it is
  rather too large than too small.

  Neither says anything about training again with another seed.

  Args:
    is_correct: whether the classifier is right.
    baseline_is_correct: whether the classifier that it is compared with is.
    labels: the class of each image.
    seed: of the permutations.
  """
  difference = is_correct.astype(np.float64) - baseline_is_correct
  gain, error = class_mean(difference, labels)
  if abs(gain) < 1e-12:  # The rounding of a sum that is 0: no gain, and no loss.
    gain = 0.0
  terms = (_class_weights(labels) * difference)[difference != 0]
  return PairedGain(gain, error, _permutation_p_value(terms, seed))


def class_mean(
  values: Float[np.ndarray, ' image'], labels: Int[np.ndarray, ' image']
) -> tuple[float, float]:
  """Return the mean over classes of the mean value of an image, and its standard error.

  Args:
    values: 1 where a classifier is right, say, and 0 where it is wrong; or a difference of two.
    labels: the class of each image.
  """
  weights = _class_weights(labels)
  mean = float(weights @ values)
  deviations = weights * (values - mean)
  num_images = len(labels)
  scale = num_images / max(num_images - 1, 1)
  # Two classifiers that differ nowhere have no error; two that differ in all images alike (every d
  # is 1, say) have no deviation either, but one image more could have been otherwise.
  error = math.sqrt(scale * float(deviations @ deviations))
  # By the values themselves: their mean is rounded, so the deviations need not be 0.
  if values.any() and np.ptp(values) == 0:
    error = float(np.linalg.norm(weights * values)) / math.sqrt(num_images)
  return mean, error


def _class_weights(labels: Int[np.ndarray, ' image']) -> Float[np.ndarray, ' image']:
  """Return the weight of each image in a mean over classes."""
  _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
  return 1 / (len(counts) * counts[classes])


def _permutation_p_value(terms: Float[np.ndarray, ' image'], seed: int) -> float:
  """Return the share of sign flips whose sum is at least as far from 0 as that of `terms`."""
  if not len(terms):
    return 1.0
  # A sum in another order rounds otherwise; a tie counts as at least as far. Terms are 1 at most.
  observed = abs(terms.sum()) - 1e-12
  rng = np.random.Generator(np.random.Philox(seed))
  extreme, remaining = 0, NUM_PERMUTATIONS
  while remaining:
    rows = min(remaining, max(_BLOCK // len(terms), 1))
    signs = rng.integers(0, 2, (rows, len(terms)), np.int8) * np.int8(2) - np.int8(1)
    extreme += int(np.count_nonzero(np.abs(signs @ terms) >= observed))
    remaining -= rows
  # The observed arrangement is one of them: with it the test is never too bold.
  return (1 + extreme) / (1 + NUM_PERMUTATIONS)
