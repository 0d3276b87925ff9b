"""What `tune` has chosen, as tuned.json keeps it: what it was made for, and runs that take it."""

import json
import operator
import os
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sjft_jax import config as configs
from sjft_jax import inputs
from sjft_jax import workdir as workdirs
from sjft_jax.data import registry
from sjft_jax.data.dataset import Domains
from sjft_jax.models import build, trunk
from sjft_jax.runtime import artifacts, console
from sjft_jax.training import search
from sjft_jax.training.search import Setting

# What the settings were chosen for: a run of other images or another network needs others.
SECTIONS = ('target', 'source', 'screening', 'bank', 'descriptors', 'model', 'pretrain', 'images')
# What to do about a damaged tuned.json.
_REMEDY = 'run sjft_jax.tune again'


def apply_tuned(config: ConfigDict, path: str | os.PathLike[str]) -> ConfigDict:
  """Return the options with those that `tune` has chosen for every arm.

  A line is printed for each arm, with the values that others replace.

  Args:
    config: is left as it is.
    path: a tuned.json.

  Raises:
    ValueError: there is no such file, or it was made for other images or another network.
  """
  if not epath.Path(path).exists():
    raise ValueError(f'tuned={path}: there is no such file; make it with sjft_jax.tune')
  record = artifacts.load_json(epath.Path(path), {'arms': dict, 'options': dict}, _REMEDY)
  chosen, options = record['arms'], record['options']
  now = workdirs.result_options(config, *SECTIONS)
  # Where images are compared, the same ones may lie elsewhere.
  paths = {'target.path', 'source.path'} if 'images' in record else set()
  for name in sorted({*now, *options} - paths):
    value = json.loads(json.dumps(now.get(name)))
    if value != options.get(name):
      raise ValueError(
        f'tuned={path} was made with {name}={options.get(name, "its default")}, not '
        f'{now.get(name, "its default")}; tune again with this value'
      )
  check_repeats(config, f'tuned={path} has seen')
  if 'images' in record and record['images'] != image_fingerprints(inputs.open_domains(config)):
    raise ValueError(
      f'tuned={path} was made with other images of the target or the source, which may be test '
      'images now; tune again'
    )
  if 'weights' in record and record['weights'] != weight_fingerprints(config):
    raise ValueError(
      f'tuned={path} was made with other weights in bank.pretrained or model.pretrained; tune again'
    )
  result = config.copy_and_resolve_references()
  for arm in config.arms:
    if arm in configs.FROZEN_ARMS:
      continue
    if arm not in chosen:
      raise ValueError(f'tuned={path} has no arm {arm}, but {", ".join(chosen)}; tune it too')
    setting = _read_setting(chosen[arm], path)
    result.overrides[arm] = merge(config.overrides.get(arm, {}), setting)
    before = configs.arm_config(config, arm)
    replaced = []
    for name, value in setting.items():
      given = operator.attrgetter(name)(before)
      if given != value:
        replaced.append(f'{name}={value} instead of {given}')
    if replaced:
      console.say(f'  arm {arm}, by tuned={path}: {", ".join(replaced)}')
  return result


def merge(overrides: Mapping[str, Any], setting: Setting) -> ConfigDict:
  """Return the overrides of an arm with those of a setting in their place."""
  merged: dict[str, Any] = ConfigDict(overrides).to_dict()
  for section, options in search.nested(setting).items():
    merged[section] = merged.get(section, {}) | options
  return ConfigDict(merged)


def image_fingerprints(domains: Domains) -> list[str]:
  """Return what stands for the images that settings are chosen with."""
  return [domains.target.fingerprint, domains.source.fingerprint]


def weight_fingerprints(config: ConfigDict, opened: inputs.Inputs | None = None) -> list[str]:
  """Return what stands for the filters and the initial weights that settings are chosen with.

  Args:
    config: all options.
    opened: what they lead to, if it is loaded already.
  """
  if opened is not None:
    return [opened.bank.fingerprint, opened.network.description['weights_digest']]
  model, digest = config.model, ''
  # Not quietly: the digest of a first download is printed once, and never again.
  bank = inputs.load_bank(config)
  if model.pretrained:
    spec = trunk.TrunkSpec(model.name, model.width, model.fully_connected, model.style)
    with configs.option_section('model'):
      weights = build.load_weights(model.pretrained, spec, model.normalization)
    digest = build.digest_weights(weights)
  return [bank.fingerprint, digest]


def check_repeats(config: ConfigDict, who: str) -> None:
  """Check that no repeat tests on images that settings are chosen on.

  Raises:
    ValueError: test images are drawn, and are others in each repeat.
  """
  if config.repeats > 1 and registry.draws_test(**config.target):
    raise ValueError(
      f'{who} the training images of one split, some of which the other {config.repeats - 1} '
      'repeats test on; tune and train each target.split_seed by itself, with repeats=1'
    )


def _read_setting(chosen: Any, path: str | os.PathLike[str]) -> Setting:
  """Return the setting of what a tuned.json says of an arm.

  Raises:
    ValueError: it has none, or other options or values than a setting can have.
  """
  setting = chosen.get('setting') if isinstance(chosen, dict) else None
  if not isinstance(setting, dict):
    raise ValueError(f'{path} is damaged: an arm has no setting; {_REMEDY}')
  for name, value in setting.items():
    if name not in search.OPTIONS or type(value) not in (int, float):
      raise ValueError(f'{path} is damaged: no setting has {name:.99}={value!r:.99}; {_REMEDY}')
  return setting
