"""The work directory of a run: its place, and the options that it was made with."""

import json
import os
import platform
from fnmatch import fnmatchcase
from importlib import metadata, util
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sjft_jax.config import default
from sjft_jax.data.dataset import Domains
from sjft_jax.models.weights import exported
from sjft_jax.runtime import artifacts, console

# The version of the files in a work directory. It goes up when their names or contents change.
FORMAT = 3
# In a work directory: the options that it was made with.
CONFIG = 'config.json'
# In a work directory: the fingerprints of the images that the screening has left.
SCREENED = 'screened.json'

# What can decide the last bits of results: Python and packages.
_DECIDING_PACKAGES = (
  'Python',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'numpy',
  'opencv-python-headless',
  'pillow',
  'simplejpeg',
  # The arms knn and probe; the hashes that propose duplicates.
  'scikit-learn',
  'scipy',
  'ImageHash',
)

# Options that change no result, whatever their values. Other batch sizes may move last bits, but
# where memory runs out, a smaller one has to go on with what there is.
NON_RESULT_OPTIONS = (
  'logging.*',
  'tuning.*',
  'screening.max_bad_share',
  'descriptors.batch_size',
  'descriptors.workers',
  'descriptors.checkpoint_minutes',
  'training.workers',
  'training.checkpoint_every',
  'training.keep_rounds',
  'training.max_loss',
  'evaluation.batch_size',
)


def resolve(name: str | os.PathLike[str]) -> epath.Path:
  """Return the work directory of a name: a path, in which '~' is the user's home, or gs://bucket/path.

  Raises:
    ValueError: a file, a path with one of * ? [, a store that cannot hold a work directory, or one
      that needs another package.
  """
  name = os.path.expanduser(name)
  scheme, remote, _ = name.partition('://')
  if remote and scheme != 'gs':
    raise ValueError(
      f'{name}: checkpoints can be on a disk or in Google Cloud Storage (gs://bucket/path) only; '
      f'mount a {scheme}:// bucket and give its path'
    )
  if remote and not util.find_spec('gcsfs'):
    raise ValueError(f"{name} needs the package gcsfs: pip install 'sjft_jax[gcs]'")
  # Orbax takes the path for a pattern when it merges what processes have written: it finds nothing,
  # and the checkpoint is complete by its marks and empty.
  if set('*?[') & set(name if remote else os.path.abspath(name)):
    raise ValueError(
      f'{name} has one of * ? [ in its path, where checkpoints cannot be written; give '
      'another work directory'
    )
  if not remote and os.path.exists(name) and not os.path.isdir(name):
    raise ValueError(f'{name} is a file; give another work directory')
  return epath.Path(name)


def run_fingerprint(
  config: ConfigDict, bank_fingerprint: str, network: dict[str, Any], domains: Domains
) -> str:
  """Return the fingerprint of everything that decides the results of a run.

  Args:
    config: all options.
    bank_fingerprint: of the filters that describe images.
    network: its description, as in `models.build.Network`. A file of weights may decide on the
      normalization of the pixels; what else is in it the options decide.
    domains: the data sets as they are opened, before any image is left out.
  """
  return artifacts.fingerprint(
    result_options(config),
    bank_fingerprint,
    network['weights_digest'],
    network['normalization'],
    *(data.fingerprint for data in domains),
  )


def option_table(options: dict[str, Any]) -> list[tuple[str, Any, Any]]:
  """Return the name, the value and the default of every option; None where there is no default.

  Args:
    options: by section, as `load_config` returns them.
  """
  defaults = _flatten(json.loads(default().to_json()))
  return [(name, value, defaults.get(name)) for name, value in _flatten(options).items()]


def result_options(config: ConfigDict, *sections: str) -> dict[str, Any]:
  """Return the options that decide the results, as 'section.option' → value.

  Options at their default are left out, so that new ones which change nothing keep old runs valid.

  Args:
    config: all options.
    sections: the sections to look at; none: all.
  """
  defaults = _defaults()
  return {
    name: value
    for name, value in _options(config).items()
    if not sections or name.partition('.')[0] in sections
    if not changes_no_result(name) and (name not in defaults or defaults[name] != value)
  }


def changes_no_result(option: str) -> bool:
  """Return whether an option, 'section.option' or an arm's override of it, decides no result."""
  if option.startswith('overrides.'):
    option = option.split('.', 2)[-1]
  return any(fnmatchcase(option, pattern) for pattern in NON_RESULT_OPTIONS)


def check_unchanged(
  config: ConfigDict, directory: epath.Path, *, resume_with_changes: bool = False
) -> None:
  """Check that a work directory, if it is in use, was made with the same options.

  Args:
    config: the options now.
    directory: the work directory.
    resume_with_changes: accept other values of options that change no result.

  Raises:
    ValueError: it was made with other options, or by another version of this program.
  """
  earlier = load_config(directory)
  if earlier is None:
    return
  now = _options(config)
  # Options that are newer than the work directory had their default.
  then = _defaults() | _flatten(earlier)
  changes = {
    name: f'{name} was {then.get(name)!r}, now {now.get(name)!r}'
    for name in {**then, **now}
    if then.get(name) != now.get(name)
  }
  harmless = '; '.join(change for name, change in changes.items() if changes_no_result(name))
  harmful = '; '.join(change for name, change in changes.items() if not changes_no_result(name))
  if harmful:
    moved = [name for name in changes if not changes_no_result(name)]
    hint = (
      '; where the same images have moved, a link at the old path leads to them'
      if {*moved} <= {'target.path', 'source.path'}
      else ''
    )
    also = f'; --resume_with_changes accepts only the harmless {harmless}' if harmless else ''
    raise ValueError(
      f'{directory} was made with other options ({harmful}): use a new --workdir, or the same '
      f'options{hint}{also}'
    )
  if harmless and not resume_with_changes:
    raise ValueError(
      f'{directory} was made with other options ({harmless}), all harmless: add '
      '--resume_with_changes to go on with them'
    )


def load_config(directory: epath.Path) -> dict[str, Any] | None:
  """Load the options that a work directory was made with; return None if it is not in use.

  Raises:
    ValueError: it is an export, it was made by another version of this program, or the file is
      damaged.
  """
  path = directory / CONFIG
  if not path.exists():
    return None
  if exported.is_export(directory):  # It has a file of this name, which must not be deleted.
    raise ValueError(
      f'{directory} is an exported network, no work directory; give another folder, such as '
      'runs/mine'
    )
  saved = artifacts.load_json(path, {'format': int, 'options': dict})
  if saved['format'] != FORMAT:
    raise ValueError(
      f'{directory} was made by another version of sjft_jax, which this one cannot continue or '
      'read; use a new --workdir, or the version that made it'
    )
  options: dict[str, Any] = saved['options']
  values = _flatten(options)
  for name, standard in _defaults().items():
    if _kind(values.get(name, standard)) != _kind(standard):
      raise ValueError(
        f'{path} is damaged: {name}={values[name]!r} is no {_kind(standard)}; {artifacts.REMEDY}'
      )
  return options


def _kind(value: Any) -> str:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return 'number' if is_number else type(value).__name__


def save_config(config: ConfigDict, directory: epath.Path) -> None:
  """Write config.json and versions.json, with the versions of Python and every installed package.

  What was there before and differs stays in config.<n>.json and versions.<n>.json. A line is
  printed if a package that decides the last bits of results had another version.
  """
  load_config(directory)  # A damaged one is named, not replaced.
  content = {'format': FORMAT, 'options': json.loads(config.to_json())}
  _replace_json(directory / CONFIG, content)
  versions = dict(sorted({(d.name, d.version) for d in metadata.distributions()}, key=str))
  versions['Python'] = platform.python_version()
  earlier = _replace_json(directory / 'versions.json', versions)
  changes = [
    f'{name} {earlier[name]}, now {versions.get(name)}'
    for name in _DECIDING_PACKAGES
    if name in earlier and earlier[name] != versions.get(name)
  ]
  if changes:
    console.say(
      f'  Other versions than before ({"; ".join(changes)}): results agree to rounding with those '
      'of one version, not to the bit.'
    )


def check_screened(domains: Domains, directory: epath.Path) -> None:
  """Check that a work directory with trained networks had the same images.

  Where no file has changed, an image can be readable at one time only: after a fault of the disk,
  or by another version of a decoder. What is made before a training says itself what it is of.

  Args:
    domains: the data sets, without images that were left out.
    directory: the work directory.

  Raises:
    ValueError: it had others, with which rounds may have been trained.
  """
  then = _load_screened(directory) if _is_trained(directory) else {}
  for name, data in domains._asdict().items():
    if then.get(name, data.fingerprint) != data.fingerprint:
      raise ValueError(
        f'{directory} was made with other {name} images: files have changed, or some could not be '
        'read then or now; go on once the same ones can be read, or use a new --workdir'
      )


def check_start(fingerprint: str, directory: epath.Path) -> None:
  """Check that a work directory with trained networks starts from the same images and weights.

  Before anything is written: what describes the trained networks, and says which images they have
  seen, stays as it is where the run cannot go on.

  Args:
    fingerprint: of the run, see `run_fingerprint`.
    directory: the work directory.

  Raises:
    ValueError: it does not.
  """
  if _is_trained(directory) and _load_screened(directory).get('run', fingerprint) != fingerprint:
    raise ValueError(
      f'{directory} was made with other images, weights or filters: files have changed, or could '
      'not be read then or now; put them back as they were, or use a new --workdir'
    )


def _is_trained(directory: epath.Path) -> bool:
  return any((directory / name).exists() for name in ('arms', 'pretrain'))


def _load_screened(directory: epath.Path) -> dict[str, Any]:
  path = directory / SCREENED
  return artifacts.load_json(path, {}) if path.exists() else {}


def save_screened(domains: Domains, directory: epath.Path, fingerprint: str) -> None:
  """Save which images `check_screened`, and which start `check_start` compares others with."""
  fingerprints = {name: data.fingerprint for name, data in domains._asdict().items()}
  artifacts.write_json(directory / SCREENED, {**fingerprints, 'run': fingerprint})


def _replace_json(path: epath.Path, content: dict[str, Any]) -> dict[str, Any]:
  """Write a JSON file and return its earlier content, which stays as <name>.<n>.json if it differs.

  Without an earlier file, return `content`.
  """
  earlier = artifacts.load_json(path, {}) if path.exists() else content
  if earlier != content:
    number = 1
    while (copy := path.with_name(f'{path.stem}.{number}.json')).exists():
      number += 1
    artifacts.write_json(copy, earlier)
  artifacts.write_json(path, content)
  return earlier


def _defaults() -> dict[str, Any]:
  """Return the defaults of all options but the overrides, which belong to each configuration."""
  options = _options(default())
  return {name: value for name, value in options.items() if not name.startswith('overrides.')}


def _options(config: ConfigDict) -> dict[str, Any]:
  return _flatten(json.loads(config.to_json()))


def _flatten(options: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in options.items():
    flat |= _flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
  return flat
