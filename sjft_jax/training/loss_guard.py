"""End a training whose loss is not finite or too large, with the images of the step."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

from sjft_jax.runtime import artifacts


class BadMetric(NamedTuple):
  """The name and the value of a metric that must not be."""

  name: str
  value: float


def find_bad_metric(
  metrics: Mapping[str, Any], *, max_loss: float, source_terms: int = 1
) -> BadMetric | None:
  """Return the first metric that is not finite, or is a mean loss above `max_loss`.

  Args:
    metrics: of a step: (sum, count) by name. Those that count nothing are left out.
    max_loss: nats, for the metrics whose names end in 'loss'; 0: losses need only be finite.
    source_terms: cross-entropies that an image's 'source_loss' is the sum of, each of which may be
      `max_loss`: the classes of a multi-label source.
  """
  for name, (total, count) in metrics.items():
    if not count:
      continue
    mean = float(total) / int(count)
    limit = max_loss * (source_terms if name == 'source_loss' else 1)
    if not math.isfinite(mean) or (name.endswith('loss') and 0 < limit < mean):
      return BadMetric(name, mean)
  return None


@dataclass(frozen=True, kw_only=True)
class LossGuard:
  """Check the metrics of each step: `guard(step, metrics)`.

  Attributes:
    max_loss, source_terms: see `find_bad_metric`.
    checkpoints: returns the steps of which there are checkpoints. The one at a bad step holds the
      parameters that gave the bad loss, so it is not called good.
    images: returns the names of the images of a step, by its number from 0.
    directory: where bad_step.txt is written.
    learning_rate, max_loss_option: the names of the options that it learns with and is limited by,
      for the message.
  """

  max_loss: float
  checkpoints: Callable[[], Iterable[int]]
  images: Callable[[int], list[str]]
  directory: epath.Path | os.PathLike[str]
  learning_rate: str = 'solver.learning_rate'
  max_loss_option: str = 'training.max_loss'
  source_terms: int = 1

  def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Raise an error if a metric is bad, and leave the names of the step's images in bad_step.txt.

    Args:
      step: its number, from 0; the message counts from 1, as log.jsonl does.
      metrics: (sum, count) by name.

    Raises:
      FloatingPointError: a metric is not finite, or a loss too large.
    """
    bad = find_bad_metric(metrics, max_loss=self.max_loss, source_terms=self.source_terms)
    if bad is None:
      return
    names = self.images(step)
    path = epath.Path(self.directory) / 'bad_step.txt'
    with artifacts.atomic_write(path) as file:
      file.write(''.join(f'{name}\n' for name in names).encode())
    limit, remedy = '', f'lower {self.learning_rate}'
    if step == 0:  # Nothing has been learnt yet, at whichever rate.
      remedy = (
        'the network starts like this: look at model.pretrained, model.batch_norm and model.dtype'
      )
    if math.isfinite(bad.value):
      limit = f', above {self.max_loss_option}={self.max_loss:g}'
      if bad.name == 'source_loss' and self.source_terms > 1:
        limit += f' for each of {self.source_terms:,} classes'
      if step == 0:
        remedy = f'raise {self.max_loss_option}'
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    good = max((number for number in self.checkpoints() if number < step), default=None)
    checkpoint = (
      'there is no checkpoint before it' if good is None else f'the last good checkpoint: {good}'
    )
    raise FloatingPointError(
      f'{bad.name} is {bad.value:.6g} at step {step + 1}{limit}, with the images '
      f'{", ".join(names[:3])}{more} (all in {path}); {checkpoint}; {remedy}'
    )
