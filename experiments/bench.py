"""Measure everything at once: one JSON with figures, machine and versions, and one page.

  python -m experiments.bench --device --output=runs/bench     # one accelerator, some minutes
  python -m experiments.bench --quick --output=runs/bench      # two cores, under ten minutes
  python -m experiments.bench --all --output=runs/bench        # everything, hours
  python -m experiments.bench --page=runs/bench/bench.json     # draw the page again

Each measurement is a process. They prepare and compile side by side; where one times, all others
are stopped (`experiments/turns.py`). Contenders of one comparison take turns. `bench.json` is
written anew with every figure, so that a limit or a kill costs only what was not measured yet; a
measurement that fails leaves its error there. The page is drawn where altair is installed.
`--toy` makes all sizes small, for tests on a CPU; `--only` picks measurements by name.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from experiments import bench_results, cost_model
from experiments.turns import Task, run_tasks

ALL = flags.DEFINE_bool('all', False, 'Measure everything at the sizes of the documents.')
QUICK = flags.DEFINE_bool('quick', False, 'Measure everything at small sizes.')
DEVICE = flags.DEFINE_bool('device', False, 'Check and measure one accelerator.')
TOY = flags.DEFINE_bool('toy', False, 'With --device: sizes for a CPU, whose figures say nothing.')
OUTPUT = flags.DEFINE_string('output', 'runs/bench', 'Folder for bench.json and bench.html.')
PAGE = flags.DEFINE_string('page', None, 'Only draw the page of this bench.json, beside it.')
PRICE = flags.DEFINE_float(
  'price', 0, 'Of an hour of a device and its cores, for the cost model.', lower_bound=0
)
ONLY = flags.DEFINE_list('only', [], 'Names of the measurements to run; none: all.')
LIMIT = flags.DEFINE_float('limit', 0, 'Seconds after which all ends; 0: no limit.', lower_bound=0)
JOBS = flags.DEFINE_integer(
  'jobs', 0, 'Processes side by side; 0: three for two cores with --device, else 1.', lower_bound=0
)

# A step of the device is killed when it holds the machine for so many seconds.
_TURN_LIMIT_S = 90
DEMO_STEP = '--network=alexnet --size=64 --batch=32'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'torch', 'timm', 'faiss-cpu', 'grain', 'simplejpeg')


class Measurement(NamedTuple):
  """A row of the table of measurements.

  Attributes:
    name: in the results.
    module: in experiments.
    flags: of each scale in which it is measured: 'device', 'toy', 'quick', 'all'.
    group: contenders of one comparison share it.
    environment: further variables.
  """

  name: str
  module: str
  flags: Mapping[str, str]
  group: str = ''
  environment: Mapping[str, str] = {}


def step_measurements(network: str, dtype: str) -> list[Measurement]:
  """Return our step, PyTorch's and the one that it compiles, which take turns."""
  scales = {'device': f'--network={network} --size=224 --batch=64 --repeats=2'}
  if (network, dtype) == ('resnet50v2', 'float32'):
    scales['toy'] = '--network=alexnet --size=64 --batch=4 --repeats=1 --side=256'
  common = f'--dtype={dtype} --json'
  return [
    Measurement(
      f'step {network} {dtype} {whose}',
      'bench_train_step',
      {
        scale: f'--only={whose} {flags_} {common}'
        for scale, flags_ in scales.items()
        if (scale, whose) != ('toy', 'compiled')  # It takes minutes on a CPU.
      },
      group=f'step {network} {dtype}',
    )
    for whose in ('ours', 'torch', 'compiled')
  ]


# In the order of their importance: of those that are ready to time, the first one does.
MEASUREMENTS = (
  Measurement(
    'rankings',
    'bench_device_ranking',
    {
      'device': '--measure=rankings --targets=512 --sources=10240 --bins=100 --images=512',
      'toy': '--measure=rankings --targets=8 --sources=64 --filters=6 --bins=4 --k=5'
      ' --images=16 --size=64',
    },
  ),
  Measurement(
    'product',
    'bench_device_ranking',
    {
      'device': '--measure=product --targets=12000 --swept_bins=16 --swept_bins=100',
      'toy': '--measure=product --targets=8 --filters=6 --swept_bins=4 --swept_bins=8 --side=64'
      ' --swept_sources=1024 --swept_sources=2048 --swept_sources=3000 --k=5 --ks=5 --ks=9',
      'quick': '--measure=product --targets=500 --swept_bins=8 --swept_bins=32 --side=2048'
      ' --swept_sources=4096 --swept_sources=8192 --swept_sources=16384 --ks=100 --ks=4000',
      'all': '--measure=product --targets=1000 --swept_bins=16 --swept_bins=100 --side=4096',
    },
  ),
  *(
    Measurement(
      f'description {bank}',
      'bench_device_ranking',
      {
        scale: f'--measure=describe_images --bank={bank} {flags_}'
        for scale, flags_ in {
          'device': '--images=2048',
          'toy': '--images=8 --size=64 --batch=4 --bins=4',
          'quick': '--images=128 --batch=16',
          'all': '--images=512 --batch=16 --batch=64',
        }.items()
      },
    )
    for bank in ('alexnet', 'gabor')
  ),
  *step_measurements('resnet50v2', 'bfloat16'),
  *step_measurements('resnet152v2', 'bfloat16'),
  *step_measurements('resnet50v2', 'float32'),
  *step_measurements('resnet152v2', 'float32'),
  Measurement(
    'step',
    'bench_train_step',
    {'quick': f'{DEMO_STEP} --repeats=3 --json', 'all': f'{DEMO_STEP} --compile --json'},
  ),
  Measurement(
    'step resnet50v2', 'bench_train_step', {'all': '--network=resnet50v2 --compile --json'}
  ),
  Measurement('step resnet152v2', 'bench_train_step', {'all': '--compile --json'}),
  Measurement(
    'loading',
    'bench_device_ranking',
    {
      'device': '--measure=loading --images=8192',
      'toy': '--measure=loading --images=8 --size=64',
      'quick': '--measure=loading --images=1024',
      'all': '--measure=loading --images=4096',
    },
  ),
  Measurement(
    'pmap',
    'bench_device_training',
    {
      'device': '--measure=pmap --network=resnet152v2',
      'toy': '--measure=pmap --network=alexnet',
      'all': '--measure=pmap --network=resnet152v2',
    },
  ),
  Measurement(
    'resume',
    'bench_device_training',
    {
      'device': '--measure=resume --size=64 --pairs=8',
      'toy': '--measure=resume --size=64 --pairs=2',
      'quick': '--measure=resume --size=64 --pairs=2',
      'all': '--measure=resume --size=64 --pairs=8',
    },
  ),
  Measurement(
    'out of memory',
    'bench_device_training',
    {
      'device': '--measure=out_of_memory --size=224 --pairs=256',
      'toy': '--measure=out_of_memory --size=64 --pairs=2',
    },
  ),
  Measurement(
    'accumulation',
    'bench_device_training',
    {
      'device': '--measure=accumulation --network=resnet50v2 --pairs=64',
      'toy': '--measure=accumulation --network=alexnet --size=64 --pairs=8',
    },
    # 8.4 of 140 GiB, less than the whole step takes.
    environment={'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.06'},
  ),
  Measurement(
    'loop',
    'bench_loop',
    {
      'device': '--network=resnet50v2 --dtype=bfloat16 --size=224 --pairs=32 --steps=60'
      ' --repeats=2 --json',
      'toy': '--size=72 --pairs=2 --steps=4 --repeats=1 --json',
      'quick': '--repeats=2 --json',
      'all': '--steps=200 --json',
    },
  ),
  Measurement(
    'ranking against rivals',
    'bench_retrieval',
    {'quick': '--targets=300 --sources=5000 --repeats=2 --nopynndescent --json', 'all': '--json'},
  ),
  Measurement(
    'description against rivals',
    'bench_describe',
    {'quick': '--size=64 --batch=32 --rounds=3 --json', 'all': '--size=64 --size=224 --json'},
  ),
  Measurement(
    'loading against rivals',
    'bench_loading',
    {'quick': '--size=400x500 --images=64 --rounds=1 --json', 'all': '--json'},
  ),
  Measurement(
    'folders',
    'bench_folders',
    {
      'toy': '--classes=1 --json',
      'quick': '--classes=10 --bytes=4096 --json',
      'all': '--classes=100 --bytes=4096 --json',
    },
  ),
)


def describe_machine() -> dict[str, Any]:
  """Return what the figures depend on."""
  try:
    model = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
  except OSError:
    model = None
  machine = {
    'processor': model[1] if model else platform.machine(),
    'cores': os.cpu_count(),
    'memory_gib': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30,
    'load_before': os.getloadavg()[0],
    'system': platform.platform(),
    'python': platform.python_version(),
  }
  if shutil.which('nvidia-smi') and os.environ.get('JAX_PLATFORMS') != 'cpu':
    query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    machine['accelerators'] = answer.stdout.splitlines()
  return machine


def find_versions() -> dict[str, str]:
  """Return the versions of the packages that are installed."""
  versions = {}
  for distribution in importlib.metadata.distributions():
    name = distribution.metadata['Name'] or ''
    if name in _PACKAGES or name.startswith(('nvidia-cudnn', 'nvidia-cublas', 'jax-cuda')):
      versions[name] = distribution.version
  return versions


def choose_tasks(scale: str, folder: Path, names: Sequence[str]) -> list[Task]:
  """Return what is measured at a scale.

  Raises:
    ValueError: there is no measurement of such a name.
  """
  chosen = [m for m in MEASUREMENTS if scale in m.flags]
  known = {m.name for m in chosen}
  if unknown := set(names) - known:
    raise ValueError(
      f'--only={",".join(sorted(unknown))} is unknown; use {", ".join(sorted(known))}'
    )
  platforms = os.environ.get('JAX_PLATFORMS', '')
  common = {
    # Several processes share the device.
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    # Initial values are drawn on the host.
    'JAX_PLATFORMS': {'': '', 'cpu': 'cpu'}.get(platforms, f'{platforms},cpu'),
    'XDG_CACHE_HOME': str(folder),
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'xla'),
    'TORCHINDUCTOR_CACHE_DIR': str(folder / 'inductor'),
    'TORCHINDUCTOR_COMPILE_THREADS': '4',
    'TRITON_CACHE_DIR': str(folder / 'triton'),
  }
  return [
    Task(
      m.name,
      [sys.executable, '-m', f'experiments.{m.module}', *m.flags[scale].split()],
      m.group,
      common | dict(m.environment),
    )
    for m in chosen
    if not names or m.name in names
  ]


def measure(scale: str, output: Path) -> dict[str, Any]:
  """Run the measurements of a scale; write bench.json with every figure that arrives."""
  results: dict[str, Any] = {
    'scale': scale,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': ' '.join(sys.argv[1:]),
    'machine': describe_machine(),
    'versions': find_versions(),
    'measurements': {},
  }
  output.mkdir(parents=True, exist_ok=True)
  start_time = time.monotonic()

  def report(name: str, record: dict[str, Any]) -> None:
    before = results['measurements'].get(name, {})
    results['measurements'][name] = record
    results['seconds'] = time.monotonic() - start_time
    partial = output / 'bench.json.partial'
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(output / 'bench.json')
    news = {k: v for k, v in record['figures'].items() if before.get('figures', {}).get(k) != v}
    line = f'{results["seconds"]:6.1f} s  {name}: {record["status"]}'
    if news:
      line += f' {json.dumps(news)[:400]}'
    print(line, flush=True)
    for error in record.get('error', ()):
      print(f'          {error[:400]}', flush=True)

  with tempfile.TemporaryDirectory() as folder:
    tasks = choose_tasks(scale, Path(folder), ONLY.value)
    run_tasks(
      tasks,
      side_by_side=JOBS.value or (DEVICE.value and 3 * (os.cpu_count() or 1) // 2) or 1,
      limit=LIMIT.value or float('inf'),
      turn_limit=_TURN_LIMIT_S if DEVICE.value else float('inf'),
      report=report,
    )
  return results


def print_findings(results: Mapping[str, Any]) -> None:
  """Print what was found, and what runs would take by it."""
  marks = {True: 'met', False: 'NOT MET', None: ''}
  print()
  for finding in bench_results.find(results['measurements']):
    goal = f'  (goal: {finding.goal}: {marks[finding.is_met]})' if finding.goal else ''
    print(f'{finding.question}: {finding.answer or "not measured"}{goal}')
  try:
    model = cost_model.fit(results['measurements'])
  except ValueError as error:
    print(f'\n{error}')
    return
  print('\nWhat runs would take', *cost_model.describe(model), sep='\n')
  headings, rows = cost_model.tabulate(model, PRICE.value)
  for row in rows:
    print(f'{row[0]}: {", ".join(map(" ".join, zip(headings[1:], row[1:], strict=True)))}')


def draw(results: Mapping[str, Any], path: Path) -> None:
  """Draw the page, where the packages that draw it are installed."""
  from experiments import bench_page

  try:
    bench_page.write(path, results, PRICE.value)
  except ModuleNotFoundError as error:
    print(f'{path} is not drawn: {error.name} is missing; --page draws it from bench.json later')
  else:
    print(f'\n{path}')


def main(_: object) -> None:
  if PAGE.value:
    results = json.loads(Path(PAGE.value).read_text())
    print_findings(results)
    draw(results, Path(PAGE.value).with_suffix('.html'))
    return
  scales = [f.name for f in (ALL, QUICK, DEVICE) if f.value]
  if len(scales) != 1:
    sys.exit('error: give one of --all, --quick and --device')
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # As `timeout` sends it.
  output = Path(OUTPUT.value)
  results = measure('toy' if TOY.value else scales[0], output)
  print_findings(results)
  draw(results, output / 'bench.html')


if __name__ == '__main__':
  app.run(main)
