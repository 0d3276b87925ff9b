"""Read bench.json: ratios of contenders that took turns, and goals with what was measured."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Measurements = Mapping[str, Mapping[str, Any]]
STEP_GOAL, DESCRIPTION_GOAL, PRODUCT_GOAL = 1.1, 6000, 0.85


class Finding(NamedTuple):
  """An answer to one question.

  Attributes:
    question: what was asked.
    answer: what was measured; '' if it was not.
    goal: what was hoped for; '' for none.
    is_met: None without a goal or an answer.
  """

  question: str
  answer: str = ''
  goal: str = ''
  is_met: bool | None = None


def figures(measurements: Measurements, name: str) -> Mapping[str, Any]:
  """Return what a measurement has found so far."""
  found: Mapping[str, Any] = measurements.get(name, {}).get('figures', {})
  return found


def step_ratio(measurements: Measurements, step: str) -> tuple[float, str] | None:
  """Return PyTorch's time over ours and which of its steps it is, the faster of two."""
  ours = figures(measurements, f'{step} ours').get('seconds', {}).get('ours')
  rivals = {}
  for whose in ('torch', 'compiled'):
    rivals |= figures(measurements, f'{step} {whose}').get('seconds', {})
  if not ours or not rivals:
    return None
  name = min(rivals, key=lambda rival: statistics.median(rivals[rival]))
  # In turns: the n-th of one was right before or after the n-th of the other.
  ratio = statistics.median(a / b for a, b in zip(rivals[name], ours, strict=False))
  return ratio, name


def find(measurements: Measurements) -> list[Finding]:
  """Return the findings on what was started at this scale."""
  findings: list[Finding] = []
  for name in measurements:
    read = _READERS.get(name) or (_read_step if name.endswith(' ours') else None)
    if read:
      try:
        findings += read(measurements, name)
      except (KeyError, TypeError):  # It has not come so far.
        findings.append(Finding(name))
  return findings


def _goal(question: str, value: float, least: float, text: str) -> Finding:
  return Finding(question, text, f'{least:,g} or more', value >= least)


def _read_rankings(measurements: Measurements, name: str) -> Iterator[Finding]:
  rankings = figures(measurements, name)['rankings']
  for kind, row in rankings.items():
    answer = f'{row["same_positions"]:.4%} of places, {row["same_neighbors"]:.4%} of neighbours'
    if 'error_in_tolerances' in row:
      error = row['error_in_tolerances']
      answer += f'; error {error:.2g} of its bound'
      yield Finding(f"the CPU's ranking of {kind}", answer, 'error 1 or less', error <= 1)
    else:
      yield Finding(f"the CPU's ranking of images by {kind}", answer)


def _read_product(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  for dtype, flops in row['peak_flops'].items():
    yield Finding(f'square product, {dtype}', f'{flops / 1e12:,.3g} TFLOP/s')
  text = f'{row["fraction_of_peak"]:.2f}, {row["sources_per_second"]:,.0f} sources/s'
  question = f'FLOP/s of the ranking over the square product, {row["targets"]:,} targets'
  yield _goal(question, row['fraction_of_peak'], PRODUCT_GOAL, text)
  tile = dict(row['tile'])
  question = f'stages of a tile of 1,024 sources, k = {tile.pop("k"):,}, ms'
  stages = (f'{name.removesuffix("_ms")} {ms:.3g}' for name, ms in tile.items())
  yield Finding(question, ', '.join(stages))


def _read_description(measurements: Measurements, name: str) -> Iterator[Finding]:
  for kind, row in figures(measurements, name).items():
    rate = row['images_per_second']
    text = f'{rate:,.0f} images/s'
    if 'images_per_second_from_files' in row:
      text += f', {row["images_per_second_from_files"]:,.0f} from JPEG files'
    if row.get('device_peak_mib'):  # The goal is an accelerator's.
      yield _goal(f'{name}, {kind}', rate, DESCRIPTION_GOAL, text)
    else:
      yield Finding(f'{name}, {kind}', text)


def _read_step(measurements: Measurements, name: str) -> Iterator[Finding]:
  step = name.removesuffix(' ours')
  row = figures(measurements, name)
  peaks = [f'{row["images_per_second"]:,.0f} images/s']
  if 'device_peak_mib' in row:
    peaks.append(f'{row["device_peak_mib"]:,.0f} MiB')
    rival = figures(measurements, f'{step} torch').get('torch_device_peak_mib')
    peaks += [f"PyTorch's {rival:,.0f}"] if rival else []
  peaks.append(f'{row["fraction_of_peak"]:.2f} of the square product')
  peaks.append(f'compiled in {row["compile_seconds"][0]:.0f} s')
  if ratio := step_ratio(measurements, step):
    text = f'{ratio[0]:.2f} ({ratio[1]}); {", ".join(peaks)}'
    yield _goal(f"{step}: PyTorch's time over ours", ratio[0], STEP_GOAL, text)
  else:
    yield Finding(step, ', '.join(peaks))


def _read_own_step(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  text = f'{row["speedup_vs_torch"]:.2f}; {row["images_per_second"]:,.3g} images/s'
  yield Finding(f"{name}, {row['network']}: PyTorch's time over ours", text)


def _read_loading(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  rates = [f'{kind} {row[kind]["images_per_second"]:,.0f}' for kind in ('threads', 'processes')]
  yield Finding(f'JPEG files loaded a second, {row["cores"]} cores', ', '.join(rates))


def _read_pmap(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  text = ', '.join(f'{k.removesuffix("_ms")} {v:.2f} ms' for k, v in row.items() if 'ms' in k)
  yield Finding(f'mapped call of {row["arrays"]} arrays', text)


def _read_resume(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  number = len(row['differences'])
  text = f'{number} of {row["compared"]} artifacts differ, resumed at {row["resumed_from_step"]}'
  is_killed = row['status_of_killed'] == -9
  yield Finding('a killed training, resumed', text, 'no difference', is_killed and not number)


def _read_out_of_memory(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  if not row['status']:  # The device has no limit of its own.
    yield Finding('out of memory', 'did not run out')
    return
  text = row['line'] or ' '.join(row['last_lines'])
  is_met = row['status'] == 1 and 'ran out of memory' in (row['line'] or '')
  yield Finding('out of memory', text, 'one line with a remedy', is_met)


def _read_accumulation(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  text = (
    f'{row["largest_micro_batch"]} images in each of {row["accumulation"]}, '
    f'{row["limit_mib"]:,.0f} MiB may be used'
  )
  yield Finding(
    'micro-batches by training.accumulation=0', text, 'the step runs', 'images_per_second' in row
  )


def _read_loop(measurements: Measurements, name: str) -> Iterator[Finding]:
  row = figures(measurements, name)
  loader = row['last_line'].get('loader_images_per_second', 0)
  text = (
    f'idle {row["idle"]:.1%}, loop over steps alone {row["loop_over_alone"]:.2f}, '
    f'loader {loader:,.0f} images/s, steps {row["images_per_second"]:,.0f}'
  )
  yield Finding(f'the loop around {row["network"]}', text, 'idle below 3 %', row['idle'] < 0.03)


def _read_rivals(measurements: Measurements, name: str) -> Iterator[Finding]:
  for key, value in figures(measurements, name).items():
    if 'speedup' in key or 'fraction' in key or 'ratio' in key:
      if isinstance(value, float):
        yield Finding(f'{name}: {key}', f'{value:.2f}')
    elif isinstance(value, dict):
      for inner, number in value.items():
        if 'speedup' in inner:
          yield Finding(f'{name}: {key}, {inner}', f'{number:.2f}')
        elif isinstance(number, dict):
          for rival, row in number.items():
            if 'ours_is_faster_by' in row:
              text = f'{row["ours_is_faster_by"]:.2f}'
              yield Finding(f'{name}: {key}, {inner}, ours over {rival}', text)


def _read_folders(measurements: Measurements, name: str) -> Iterator[Finding]:
  for kind, row in figures(measurements, name).items():
    text = f'{row["seconds"]:.2f} s, {row["peak_mib"]:.0f} MiB'
    yield Finding(f'{row["files"]:,} files opened: {kind}', text)


_READERS: dict[str, Callable[[Measurements, str], Iterator[Finding]]] = {
  'rankings': _read_rankings,
  'product': _read_product,
  'description alexnet': _read_description,
  'description gabor': _read_description,
  'step': _read_own_step,
  'step resnet50v2': _read_own_step,
  'step resnet152v2': _read_own_step,
  'loading': _read_loading,
  'pmap': _read_pmap,
  'resume': _read_resume,
  'out of memory': _read_out_of_memory,
  'accumulation': _read_accumulation,
  'loop': _read_loop,
  'folders': _read_folders,
  'ranking against rivals': _read_rivals,
  'description against rivals': _read_rivals,
  'loading against rivals': _read_rivals,
}
