"""How often the verdict on a gain is given although there is no difference.

  python -m experiments.false_alarms [--runs=2000] [--seed=0] [--json]

Two classifiers are drawn that are equally good: each class has an accuracy of its own (uniform in
0.3 to 0.95), each image a difficulty, and both classifiers are right with the image's probability,
independently given it. For every number of classes and of test images in a class, the share of
`runs` such pairs whose gain is called more than chance (a p-value below `significance.LEVEL`): the
verdict promises at most 5 in 100, half of them gains. The last column is what two standard errors
of the formula that was used before would have said.
"""

import json

import numpy as np
from absl import app, flags

from sjft_jax.training import significance

IMAGES = (1, 2, 3, 5, 24)
CLASSES = (5, 10, 20, 50, 100)


def draw(
  rng: np.random.Generator, classes: int, images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draw which images two equally good classifiers get right, and the labels."""
  labels = np.repeat(np.arange(classes), images)
  accuracy = rng.uniform(0.3, 0.95, classes)[labels]
  # A beta distribution with this mean: some images are easy for both, some hard.
  difficulty = rng.beta(2 * accuracy, 2 * (1 - accuracy))
  first, second = rng.random((2, len(labels))) < difficulty
  return first, second, labels


def earlier_formula(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> bool:
  """Return whether the gain exceeds two standard errors from variances within classes."""
  difference = first.astype(float) - second
  by_class = [difference[labels == label] for label in np.unique(labels)]
  gain = np.mean([d.mean() for d in by_class])
  error = np.sqrt(np.sum([d.var() / len(d) for d in by_class])) / len(by_class)
  return bool(abs(gain) > 0 and abs(gain) >= 2 * error)


def main(_: list[str]) -> None:
  """Print a table, or JSON."""
  rows = []
  for images in IMAGES:
    for classes in CLASSES:
      rng = np.random.default_rng([SEED.value, images, classes])
      alarms = earlier = 0
      for _ in range(RUNS.value):
        first, second, labels = draw(rng, classes, images)
        result = significance.paired_gain(first, second, labels)
        alarms += result.p_value < significance.LEVEL
        earlier += earlier_formula(first, second, labels)
      row = {'images': images, 'classes': classes}
      row |= {'verdicts': alarms / RUNS.value, 'two_errors_before': earlier / RUNS.value}
      rows.append(row)
      if not JSON.value:
        print(
          f'{images:3d} images a class, {classes:3d} classes: verdict {row["verdicts"]:.1%}, '
          f'before {row["two_errors_before"]:.1%}',
          flush=True,
        )
  if JSON.value:
    print(json.dumps(rows, indent=2))


if __name__ == '__main__':
  RUNS = flags.DEFINE_integer('runs', 2000, 'Pairs of classifiers for each row.')
  SEED = flags.DEFINE_integer('seed', 0, 'Seed of the classifiers.')
  JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
  app.run(main)
