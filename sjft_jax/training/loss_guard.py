"""Whether training goes astray: the first step whose loss is not finite or too large."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from sjft_jax.runtime import artifacts


class BadStep(NamedTuple):
  """A step, from 0 as `Pairs` counts, a metric of it, and its value."""

  number: int
  metric: str
  value: float


def first_nonfinite(
  steps: Iterable[tuple[int, Mapping[str, Any]]], *, max_loss: float
) -> BadStep | None:
  """The first step with a metric that is not finite or a mean loss above `max_loss`.

  Args:
    steps: in order, each step's number, from 0, and its metrics: name → (sum, count).
    max_loss: nats, for the metrics that end in 'loss'; 0: losses need only be finite.
  """
  for number, metrics in steps:
    for name, (total, count) in metrics.items():
      if not count:
        continue
      mean = float(total) / int(count)
      if not math.isfinite(mean) or (name.endswith('loss') and 0 < max_loss < mean):
        return BadStep(number, name, mean)
  return None


def bad_step_error(
  bad: BadStep,
  *,
  max_loss: float,
  checkpoints: Iterable[int],
  images: Callable[[int], list[str]],
  directory: epath.Path | os.PathLike[str],
) -> FloatingPointError:
  """What to raise after a bad step; the names of all its images are left in bad_step.txt.

  The step is told as log.jsonl counts, from 1.

  Args:
    bad: from `first_nonfinite`.
    max_loss: as it was given to `first_nonfinite`.
    checkpoints: the steps, taken before, of which there are checkpoints. One of as many steps as
      came before the bad one holds the parameters that its loss is of: it is not called good.
    images: the names of the images of a step, by its number from 0.
    directory: where bad_step.txt is written.
  """
  names = images(bad.number)
  path = epath.Path(directory) / 'bad_step.txt'
  with artifacts.atomic_write(path) as file:
    file.write(''.join(f'{name}\n' for name in names).encode())
  good = max((step for step in checkpoints if step < bad.number), default=None)
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return FloatingPointError(
    f'{bad.metric} is {bad.value:.6g} at step {bad.number + 1}'
    + (f', above training.max_loss={max_loss:g}' if math.isfinite(bad.value) else '')
    + f', with the images {", ".join(names[:3])}{more} (all in {path}); '
    + ('there is no checkpoint before it' if good is None else f'the last good checkpoint: {good}')
    + '; lower solver.learning_rate'
  )
