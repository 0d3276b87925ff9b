"""The flag --config: a configuration file, and --config.section.option=value for its options.

ml_collections loads such a file while flags are parsed, where its errors end in a traceback or in
another error. Here it is loaded before: every error is one line, and the command line can say what
ml_collections' own flag cannot: `--config.arms=none,rounds` for a tuple, and overrides of an arm
that has none yet.
"""

import ast
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

_PACKAGE = Path(__file__).parents[1]
# Where the package's own configurations are: in an installed wheel, and in a clone.
_CONFIG_FOLDERS = (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')
_HELP = (
  'A file of configs/, or one of your own. Options change by name: --config.training.steps=500. '
  'sjft_jax/config.py explains every one.'
)
_ARGUMENT = re.compile(r'(?<=\.py):(.*)', re.DOTALL)


def define_flag(argv: list[str]) -> None:
  """Load the file that --config names and define a flag for each of its options.

  Args:
    argv: the command line; --config itself is taken out, values of tuples and new overrides are
      rewritten in place.

  A file that cannot be loaded ends the program with one line.
  """
  value = _take_config(argv)
  if value is None:
    flags.DEFINE_string('config', None, _HELP)
    flags.mark_flag_as_required('config')
    return
  try:
    config = load(value)
    _add_overrides(config, argv)
    _rewrite_tuples(config, argv)
  except ValueError as error:
    sys.exit(f'error: --config={value}: {error}')
  try:
    config_flags.DEFINE_config_dict('config', config, _HELP)
  except (AttributeError, KeyError, TypeError) as error:
    reason: object = error
    while isinstance(reason, Exception):  # They come wrapped in one another.
      reason = reason.args[0]
    sys.exit(f'error: unknown option {", ".join(str(reason).splitlines())}')
  flags.FLAGS['config'].file = find(value)  # type: ignore[attr-defined]


def path() -> Path:
  """Return the file that --config names."""
  file: Path = flags.FLAGS['config'].file  # type: ignore[attr-defined]
  return file


def load(value: str) -> ConfigDict:
  """Load a configuration: `configs/indoor.py`, with an argument `configs/indoor.py:places`.

  Raises:
    ValueError: there is no such file, or it gives no configuration; with the reason in one line.
  """
  file, argument = find(value), _ARGUMENT.search(value)
  try:
    spec = importlib.util.spec_from_file_location(f'_config_{file.stem}', file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    raise ValueError(_describe(error, file)) from error
  if not callable(getattr(module, 'get_config', None)):
    raise ValueError('the file defines no function get_config()')
  try:
    config = module.get_config(*([argument[1]] if argument else []))
  except (Exception, SystemExit) as error:
    raise ValueError(_describe(error, file)) from error
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f'get_config() returned {type(config).__name__}; return a ConfigDict, starting from '
      'sjft_jax.config.default()'
    )
  return config


def find(value: str) -> Path:
  """Return the file of a configuration: as it is given, or one of the package's own.

  Raises:
    ValueError: there is no such file.
  """
  given = Path(_ARGUMENT.sub('', value)).expanduser()
  if given.suffix != '.py':
    raise ValueError('give a Python file that defines get_config(), such as configs/folder.py')
  candidates = [given]
  if given.parent.name in ('', 'configs') and not given.is_absolute():
    candidates += [folder / given.name for folder in _CONFIG_FOLDERS]
  for candidate in candidates:
    if candidate.is_file():
      return candidate
  own = sorted({file.name for folder in _CONFIG_FOLDERS for file in folder.glob('[a-z]*.py')})
  close = difflib.get_close_matches(given.name, own, 1)
  hint = f'did you mean configs/{close[0]}? ' if close else ''
  raise ValueError(f'no such file; {hint}the package has configs/{{{", ".join(own)}}}')


def _take_config(argv: list[str]) -> str | None:
  """Remove --config=FILE, or --config FILE, from the command line; return the last one's file."""
  value = None
  position = 1
  while position < len(argv) and argv[position] != '--':
    match = re.fullmatch(r'--?config(?:=(.*))?', argv[position], re.DOTALL)
    if match is None:
      position += 1
      continue
    del argv[position]
    if match[1] is not None:
      value = match[1]
    elif position < len(argv) and not argv[position].startswith('-'):
      value = argv.pop(position)
    else:
      value = ''
  return value


def _describe(error: BaseException, file: Path) -> str:
  """Return an error of a configuration file in one line, with its place in the file."""
  if isinstance(error, SyntaxError):
    return f'line {error.lineno}: {error.msg}' if error.lineno else str(error.msg)
  places = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == str(file)
  ]
  message = ' '.join(str(error).split()) or 'no message'
  if isinstance(error, ValueError):  # The file's own check of its argument.
    return message
  where = f'line {places[-1]}: ' if places else ''
  return f'{where}{type(error).__name__}: {message}'


def _add_overrides(config: ConfigDict, argv: list[str]) -> None:
  """Give an arm the sections that --config.overrides.ARM.SECTION.OPTION=VALUE names.

  The value may be the next argument. The options start with the values that all arms have.
  """
  for argument in argv[1:]:
    match = re.match(r'--?config\.overrides\.(\w+)\.(\w+)\.(\w+)(?:=|$)', argument)
    if match is None:
      continue
    arm, section, option = match.groups()
    arms, options = config.get('overrides', {}), config.get(section)
    if arm not in arms:
      continue  # ml_collections names it, and the one that may be meant.
    if not isinstance(options, ConfigDict) or option not in options:
      known = [f'{s}.{o}' for s in config if isinstance(config[s], ConfigDict) for o in config[s]]
      close = difflib.get_close_matches(f'{section}.{option}', known, 1)
      hint = f'; did you mean overrides.{arm}.{close[0]}?' if close else ''
      raise ValueError(f'overrides.{arm}.{section}.{option}: no such option{hint}')
    with arms[arm].unlocked():
      if section not in arms[arm]:
        arms[arm][section] = ConfigDict()
      if option not in arms[arm][section]:
        arms[arm][section][option] = options[option]


def _rewrite_tuples(config: ConfigDict, argv: list[str]) -> None:
  """Write comma lists for options that are tuples as ml_collections reads tuples.

  The list follows '=', or is the next argument. Of an option that comes more than once the last
  counts, as of all others; ml_collections would join the tuples.
  """
  names = set()
  for position in reversed(range(len(argv))):
    match = re.match(r'--?config\.([\w.]+)(=|$)', argv[position])
    if match is None:
      continue
    name, separator = match.groups()
    value: Any = config
    for part in name.split('.'):
      value = value.get(part) if isinstance(value, Mapping | ConfigDict) else None
    if not isinstance(value, tuple):
      continue
    if not separator:
      following = argv[position + 1 : position + 2]
      if not following or following[0].startswith('-'):
        continue  # absl names the value that is missing.
      argv[position : position + 2] = [f'{argv[position]}={following[0]}']
    if name in names:
      del argv[position]
      continue
    names.add(name)
    flag, _, text = argv[position].partition('=')
    if not text.startswith(('(', '[')):
      items = [_literal(item) for item in text.split(',') if item.strip()]
      argv[position] = f'{flag}={tuple(items)!r}'


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError):
    return text.strip()
