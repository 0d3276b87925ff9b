"""Stand-ins for the commands that documents show: each does the real work, only on little.

`document_blocks` puts them on the path, so that the shell runs a block of a document as it is. The
placeholders of the documents are real there: `DIR`, `TARGET` and `SOURCE` are a folder with images
and archives.

- `python -m sjft_jax.…` is the real command. Options that make a training small are appended
  (`SMALL` and others), and archives of data sets are miniatures. Of a command that needs other
  machines only the flags are parsed.
- `python -m experiments.…` takes hours: its flags are compared with those that the module defines.
- `pip install` is compared with the extras in setup.cfg.
- `NOT_RUN` are the others, with the reason.
"""

import ast
import configparser
import json
import re
import runpy
import sys
from pathlib import Path

# For a training, unless its command sets the option itself.
SMALL = {
  'bank.layers': ('conv1',),
  'descriptors.resize': 40,
  'descriptors.crop': 36,
  'descriptors.num_bins': 8,
  'selection.num_neighbors': 2,
  'selection.rounds': 2,
  'model.name': 'alexnet',
  'model.fully_connected': False,
  'images.resize': 36,
  'images.crop': 32,
  'training.batch_size': 4,
  'training.accumulation': 1,
  'evaluation.batch_size': 64,
  'evaluation.views': ('center',),
  'arms': ('rounds',),
}
# For every training, whatever its command says: weights would be downloaded, steps take hours.
ALWAYS = {
  'bank.name': 'alexnet',
  'bank.pretrained': 'auto',
  'model.pretrained': '',
  'model.width': 1.0,
  'training.steps': 2,
  'tuning.folds': 2,
  'tuning.settings': 2,
}
# For the trainings of one configuration: drawing the demo's 13,451 source images takes too long,
# and the miniature of Caltech 256 has three images of each class.
OF_CONFIG = {
  'configs/demo.py': {'source.dataset': 'demo_textures'},
  'experiments/tasks.py': {'source.dataset': 'demo_textures'},
  'configs/caltech256.py': {'target.train_per_class': 2},
  'configs/flowers.py:table1': {'pretrain.steps': 2, 'pretrain.warmup_steps': 0},
}
# What '...' in a docstring stands for: the flags of the command above.
ELLIPSIS = ('--target=TARGET', '--source=SOURCE', '--output=neighbors.csv')
NOT_RUN = {
  'git': 'needs the network',
  'jupyter': 'serves until it is stopped; test_notebook runs the notebook',
  'lint-imports': 'part of .ci/run',
  'mypy': 'part of .ci/run',
  'pre-commit': 'needs the network',
  'pytest': 'part of .ci/run',
  'ruff': 'part of .ci/run',
  'tensorboard': 'serves until it is stopped',
}
# These start their last arguments, a command, on several machines.
LAUNCHERS = ('srun', 'mpirun')
NAMES = ('python', 'pip', *NOT_RUN, *LAUNCHERS)
HISTORY = Path('commands.jsonl')
ROOT = Path(__file__).parents[1]


def main(name: str, *arguments: str) -> None:
  """Do what a command of a document does; the same one a second time does nothing."""
  line = json.dumps([name, *arguments])
  if HISTORY.exists() and line in HISTORY.read_text().splitlines():
    return
  if name in LAUNCHERS:
    start = arguments.index('python')
    run_python(*arguments[start + 1 :])
  elif name == 'python':
    run_python(*arguments)
  elif name == 'pip':
    check_install(*arguments)
  else:
    for argument in arguments:
      if argument.endswith(('.py', '.ipynb')) and not (ROOT / argument).exists():
        sys.exit(f'{argument} does not exist')
    print(f'{name} is not run: {NOT_RUN[name]}')
  with HISTORY.open('a') as file:
    file.write(f'{line}\n')


def run_python(*arguments: str) -> None:
  """Run `python -m MODULE …` or `python FILE`."""
  sys.path.insert(0, '')
  if arguments[0] != '-m':
    run_file(*arguments)
    return
  _, module, *flags = arguments
  if module.startswith('experiments.'):
    check_flags(module, flags)
    return
  if '--distributed' in flags or any(flag.startswith('--coordinator') for flag in flags):
    parse_only()
    flags = [flag for shown in flags for flag in (ELLIPSIS if shown == '...' else (shown,))]
  elif module in ('sjft_jax.main', 'sjft_jax.tune'):
    flags += small_options(flags)
  elif module == 'sjft_jax.data.prepare':
    expect_miniatures(flags)
  sys.argv = [module, *flags]
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  except SystemExit as end:
    if end.code:
      raise


def small_options(flags: list[str]) -> list[str]:
  """Return the options that make a training small."""
  options = {name: v for name, v in SMALL.items() if not has_option(flags, name)} | ALWAYS
  if has_option(flags, 'pretrain.steps'):
    options['pretrain.steps'] = 2
  if has_option(flags, 'training.freeze'):
    options['training.freeze'] = 'below:conv5'
  if has_option(flags, 'bank.layers'):
    options['bank.layers'] = ('conv1',)
  if has_option(flags, 'repeats'):
    options['repeats'] = 2
  for flag in flags:
    if flag.startswith('--profile='):  # A trace needs some steps before it.
      options['training.steps'] = int(flag.partition('=')[2]) + 3
  for file, more in OF_CONFIG.items():
    if any(flag.startswith(f'--config={file}') for flag in flags):
      options |= {name: value for name, value in more.items() if not has_option(flags, name)}
  return [f'--config.{name}={value}' for name, value in options.items()]


def has_option(flags: list[str], name: str) -> bool:
  return any(flag.startswith(f'--config.{name}=') for flag in flags)


def run_file(path: str) -> None:
  """Run a Python block; its trainings are small, too."""
  import sjft_jax

  def small(call):
    def call_small(config, workdir, **options):
      for name, value in (SMALL | ALWAYS).items():
        section, _, option = name.rpartition('.')
        (config[section] if section else config)[option] = value
      return call(config, workdir, **options)

    return call_small

  sjft_jax.train, sjft_jax.tune = small(sjft_jax.train), small(sjft_jax.tune)
  runpy.run_path(path, run_name='__main__')


def parse_only() -> None:
  """Let a command end once its flags are parsed."""
  from absl import app

  def parse(main, argv=None, flags_parser=None):
    flags_parser(sys.argv if argv is None else argv)

  app.run = parse


def expect_miniatures(flags: list[str]) -> None:
  """Let a data set's builder expect the miniature archives in the place of the official ones."""
  import pytest
  from data.builders import archives
  from test_configs import VALIDATION

  from sjft_jax.data import builders
  from sjft_jax.data.builders import imagenet2012

  values = dict(flag.split('=', 1) for flag in flags)
  imagenet2012.validation_labels = lambda: VALIDATION
  name = values['--dataset'].partition('/')[0]
  folder = Path(values.get('--archives', 'tfds/downloads/manual'))
  archives.declare_official(pytest.MonkeyPatch(), builders.load(name), folder)


def check_flags(module: str, flags: list[str]) -> None:
  """Check that a module of experiments/ has these flags; it is not imported."""
  defined = find_flags(module)
  for flag in flags:
    name = re.match(r'--(\w+)', flag)
    if name and name[1] not in defined:
      sys.exit(f'{module} has no flag {flag}; it has {", ".join(sorted(defined)) or "none"}')


def find_flags(module: str) -> set[str]:
  """Return the flags that a module of experiments/ defines, itself or by its imports from there."""
  tree = ast.parse((ROOT / f'{module.replace(".", "/")}.py').read_text())
  # The first string in `flags.DEFINE_…(…)` is the flag's name.
  defined = {
    next(node.value for node in ast.walk(call) if isinstance(getattr(node, 'value', None), str))
    for call in ast.walk(tree)
    if isinstance(call, ast.Call)
    if isinstance(call.func, ast.Attribute) and call.func.attr.startswith('DEFINE_')
  }
  for statement in tree.body:
    match statement:
      case ast.ImportFrom(module='experiments', names=names):
        defined.update(*(find_flags(f'experiments.{name.name}') for name in names))
      case ast.ImportFrom(module=str(name)) if name.startswith('experiments.'):
        defined |= find_flags(name)
  return defined


def check_install(*arguments: str) -> None:
  """Check that the extras of this package that `pip install` names are in setup.cfg."""
  setup = configparser.ConfigParser()
  setup.read('setup.cfg')
  for argument in arguments:
    extras = re.fullmatch(r'(?:\.|sjft_jax)\[(.*)\]', argument)
    for extra in extras[1].split(',') if extras else ():
      if extra not in setup['options.extras_require']:
        sys.exit(f'setup.cfg has no extra {extra!r}')


if __name__ == '__main__':
  main(*sys.argv[1:])
