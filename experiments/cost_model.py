"""What a run takes at any scale: the rate of every stage, fitted to the figures of `bench`.

A source image is decoded by the host's cores; a device computes its filter responses and its
product with all targets; the cores merge the divergences into the neighbours so far. Where there is
an accelerator, cores and devices work at the same time, and the slower of the two decides; on a CPU
alone everything adds up. A process has `cores` cores for each device, as many as the machine that
was measured, and processes share the sources evenly. Training divides the images of a step evenly;
what its sums between devices cost is not in the model, since it was measured on one.

The ranking of N sources for T targets with F filters takes
`start + N · max(T · F · bins · product, T · top_k · (1 + k / deep))` seconds, or with a sum for the
maximum; the form that fits the measured rankings better is taken. The longest of them is held out
of the fit: the model has to predict it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

Figures = Mapping[str, Any]
# The held-out ranking must be predicted within this share of its time.
TOLERANCE = 0.2
# Steps, the one that a run would rather take first.
_STEPS = (
  'step resnet152v2 bfloat16 ours',
  'step resnet152v2 float32 ours',
  'step resnet152v2',
  'step resnet50v2 bfloat16 ours',
  'step resnet50v2 float32 ours',
  'step resnet50v2',
  'step',
)


class Check(NamedTuple):
  """A measured time that the fit has not seen.

  Attributes:
    what: was measured.
    measured, predicted: seconds.
  """

  what: str
  measured: float
  predicted: float

  @property
  def error(self) -> float:
    """Return the error as a share of what was measured."""
    return self.predicted / self.measured - 1


class Model(NamedTuple):
  """The rates of one device and its cores.

  Attributes:
    start: seconds before the first source.
    product: seconds of a source, target, filter and bin.
    top_k: seconds of a source and a target with few neighbours.
    deep: the neighbours for which that takes twice as long.
    decode: images a second on the cores.
    describe: images a second on the device.
    train: images a second on the device.
    step: the measurement of that.
    overlaps: whether cores and device work at the same time.
    check: of the ranking that was held out.
  """

  start: float
  product: float
  top_k: float
  deep: float
  decode: float
  describe: float
  train: float
  step: str
  overlaps: bool
  check: Check


class Scale(NamedTuple):
  """A task to predict."""

  name: str
  sources: int
  devices: int
  targets: int = 12_000
  filters: int = 352
  bins: int = 100
  k: int = 1000
  trained_images: int = 16_000 * 200


SCALES = (
  Scale('ImageNet, 1 device', 1_281_167, 1),
  Scale('ImageNet, 8 devices', 1_281_167, 8),
  Scale('a billion images, 64 hosts of 8 devices', 10**9, 512),
)


def _seconds(parameters: np.ndarray, rows: np.ndarray, overlaps: bool) -> np.ndarray:
  """Predict the seconds of rankings [ranking, (sources, pairs' terms, targets, k)]."""
  start, product, top_k, per_neighbor = np.exp(parameters)
  sources, terms, targets, k = rows.T
  stages = np.stack([product * terms, top_k * targets * (1 + per_neighbor * k)])
  return start + sources * (stages.max(axis=0) if overlaps else stages.sum(axis=0))


def _fit_ranking(rows: np.ndarray, seconds: np.ndarray, overlaps: bool) -> tuple[np.ndarray, float]:
  """Return the logarithms of the parameters, and the mean squared relative error."""
  per_source = seconds.max() / rows[:, 0].max()
  first = np.log([seconds.min() / 10, per_source / rows[0, 1], per_source / rows[0, 2] / 4, 1e-4])
  fit = scipy.optimize.least_squares(
    lambda p: np.log(_seconds(p, rows, overlaps) / seconds), first, bounds=(first - 12, first + 7)
  )
  return fit.x, float(np.mean(fit.fun**2))


def fit(measurements: Mapping[str, Figures]) -> Model:
  """Fit the model.

  Args:
    measurements: of bench.json.

  Raises:
    ValueError: a measurement that it needs is missing.
  """

  def figures(name: str, *keys: str) -> Any:
    value: Any = measurements.get(name, {}).get('figures', {})
    for key in keys:
      value = value.get(key, {})
    if value == {}:
      raise ValueError(f'the cost model needs {" / ".join((name, *keys))}, which was not measured')
    return value

  product = figures('product')
  table = sorted(figures('product', 'rows'), key=lambda row: (row['bins'], row['sources']))
  if len(table) < 5:
    raise ValueError(f'the cost model needs 5 measured rankings, and has {len(table)}')
  targets, filters = figures('product', 'targets'), product['filters']
  rows = np.array(
    [[row['sources'], targets * filters * row['bins'], targets, row['k']] for row in table], float
  )
  seconds = np.array([row['seconds'] for row in table])
  fits = {overlaps: _fit_ranking(rows[:-1], seconds[:-1], overlaps) for overlaps in (True, False)}
  overlaps = fits[True][1] <= fits[False][1]
  parameters = fits[overlaps][0]
  held_out = table[-1]
  check = Check(
    f'{held_out["sources"]:,} sources, {held_out["bins"]} bins, k = {held_out["k"]:,}',
    held_out['seconds'],
    float(_seconds(parameters, rows[-1:], overlaps)[0]),
  )
  start, per_term, top_k, per_neighbor = np.exp(parameters).tolist()
  descriptions = figures('description alexnet')
  steps = [name for name in _STEPS if measurements.get(name, {}).get('figures')]
  step = steps[0] if steps else _STEPS[0]
  return Model(
    start,
    per_term,
    top_k,
    1 / per_neighbor,
    figures('loading', 'threads', 'images_per_second'),
    max(row['images_per_second'] for name, row in descriptions.items() if 'at once' in name),
    figures(step, 'images_per_second'),
    step,
    overlaps,
    check,
  )


def predict(model: Model, scale: Scale) -> dict[str, float]:
  """Return the seconds of each stage by itself."""
  images = scale.sources / scale.devices
  targets = images * scale.targets
  return {
    'decode': images / model.decode,
    'filters': images / model.describe,
    'product': targets * scale.filters * scale.bins * model.product,
    'top-k': targets * model.top_k * (1 + scale.k / model.deep),
    'training': scale.trained_images / scale.devices / model.train,
  }


def ranking_seconds(model: Model, stages: Mapping[str, float]) -> float:
  """Return the seconds of a ranking whose stages take so long."""
  on_cores = stages['decode'] + stages['top-k']
  on_device = stages['filters'] + stages['product']
  work = max(on_cores, on_device) if model.overlaps else on_cores + on_device
  return model.start + work


def slowest_stage(stages: Mapping[str, float]) -> str:
  """Return the stage of the ranking that takes the longest."""
  return max((name for name in stages if name != 'training'), key=lambda name: stages[name])


def tabulate(model: Model, price: float = 0.0) -> tuple[list[str], list[list[str]]]:
  """Return headings and rows of all scales.

  Args:
    model: the rates.
    price: of an hour of a device and its cores; 0: not known.
  """
  headings = ['', *predict(model, SCALES[0]), 'ranking', 'slowest stage', 'device hours']
  headings += ['price'] if price else []
  rows = []
  for scale in SCALES:
    stages = predict(model, scale)
    total = ranking_seconds(model, stages)
    hours = (total + stages['training']) * scale.devices / 3600
    row = [scale.name, *(format_duration(seconds) for seconds in stages.values())]
    row += [format_duration(total), slowest_stage(stages), f'{hours:,.1f}']
    rows.append(row + ([f'{hours * price:,.0f}'] if price else []))
  return headings, rows


def format_duration(seconds: float) -> str:
  """Return '12 s', '3.4 min' or '5.6 h'."""
  for unit, length in (('h', 3600), ('min', 60)):
    if seconds >= 2 * length:
      return f'{seconds / length:,.1f} {unit}'
  return f'{seconds:,.1f} s'


def describe(model: Model) -> Sequence[str]:
  """Return sentences on the fit."""
  check = model.check
  verdict = 'within' if abs(check.error) <= TOLERANCE else 'NOT within'
  together = 'at the same time' if model.overlaps else 'one after the other'
  return [
    f'Held out: {check.what}: measured {check.measured:.3g} s, predicted {check.predicted:.3g} s, '
    f'{check.error:+.0%}, {verdict} {TOLERANCE:.0%}.',
    f'Product and merging work {together}. Training is by the rate of "{model.step}".',
  ]
