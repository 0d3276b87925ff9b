"""Selective joint fine-tuning (Ge & Yu, CVPR 2017) in JAX and Flax.

```python
ranking = sjft_jax.rank('my_images', 'source_images', k=100)
config = sjft_jax.load_config('configs/folder.py')
results = sjft_jax.train(config, 'runs/mine')
classifier = sjft_jax.load('runs/mine/arms/rounds')
probabilities = classifier.predict('new_images')
sjft_jax.export('runs/mine/arms/rounds', 'exported')
```
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from collections.abc import Mapping
  from pathlib import Path

  from ml_collections import ConfigDict

  from sjft_jax.classifier import Classifier
  from sjft_jax.folder_ranking import FolderRanking
  from sjft_jax.planning import Plan

__version__ = metadata.version('sjft_jax')
__all__ = ['__version__', 'export', 'load', 'load_config', 'plan', 'rank', 'train', 'tune']

# While `python -m sjft_jax.main` looks for the module, argv is ['-m', …]. Until the command handles
# signals itself there is nothing to save: Ctrl-C ends it with its status, and without a traceback.
_IS_COMMAND = sys.argv[:1] == ['-m'] and any(w.startswith('sjft_jax.') for w in sys.orig_argv)
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

# Each function imports what it needs: `import sjft_jax` should not wait for JAX.


def rank(
  target: str | os.PathLike[str],
  source: str | os.PathLike[str],
  *,
  k: int = 100,
  bank: Mapping[str, Any] | None = None,
  descriptors: Mapping[str, Any] | None = None,
  max_bad_share: float = 0.01,
  path: str | os.PathLike[str] | None = None,
) -> FolderRanking:
  """Find the k source images nearest to every target image by their filter responses.

  Args:
    target: the folder of the query images, which are read at any depth; labels are not needed.
    source: the folder of the images to search.
    k: neighbours of each target image.
    bank: options that differ from the section `bank` of `sjft_jax.config.default`, such as
      {'name': 'gabor'}.
    descriptors: options that differ from its section `descriptors`, such as
      {'resize': 128, 'crop': 112}.
    max_bad_share: share of a folder, 0–1, that may be unreadable; such images are left out.
    path: an .npz file that keeps the ranking; with it, a call that was stopped is resumed.

  Returns:
    The names of the images, and the indices and divergences (nats) of the neighbours of each target
    image, nearest first. `save` writes them as a table.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  from sjft_jax import config, folder_ranking, option_checks, ranking
  from sjft_jax.runtime import artifacts

  options = config.with_changes(
    config.default(),
    {
      'bank': bank or {},
      'descriptors': descriptors or {},
      'screening': {'max_bad_share': max_bad_share},
    },
  )
  option_checks.check_ranges(options)
  return folder_ranking.rank_folders(
    os.fspath(target),
    os.fspath(source),
    k=k,
    bank=options.bank.to_dict(),
    descriptors=ranking.DescriptorOptions(**options.descriptors),
    max_bad_share=max_bad_share,
    path=None if path is None else artifacts.absolute_path(path),
  )


def tune(
  config: ConfigDict, workdir: str | os.PathLike[str], *, minutes: float = 0.0
) -> dict[str, Any]:
  """Choose the settings of every arm on held-out training images; called again, go on.

  Args:
    config: starts from `sjft_jax.config.default()`; the section `tuning` has the grid.
    workdir: a folder where everything is kept.
    minutes: start no training after so many minutes, and choose among what was tried; 0: no limit.

  Returns:
    What tuned.json in the work directory holds: 'arm', the one to use, 'arms' with the chosen
    setting and the held-out scores of each, and 'tried'.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  from sjft_jax import tuning

  return tuning.tune(config, workdir, minutes=minutes)


def load_config(name: str | os.PathLike[str]) -> ConfigDict:
  """Load a configuration as the command line does.

  Args:
    name: a file of your own, or one that comes with the package, 'configs/folder.py', with its
      argument, if it takes one: 'configs/indoor.py:places'.

  Raises:
    ValueError: there is no such file, or it gives no configuration.
  """
  from sjft_jax.runtime import config_file

  name = os.fspath(name)
  try:
    return config_file.load(name)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def train(
  config: ConfigDict,
  workdir: str | os.PathLike[str],
  *,
  tuned: str | os.PathLike[str] | None = None,
  resume_with_changes: bool = False,
  stop_after: str = '',
  profile_steps: int = 0,
) -> dict[str, Any]:
  """Train all arms of a configuration; called again, go on from where it was stopped.

  Args:
    config: from `load_config`, or starts from `sjft_jax.config.default()`.
    workdir: where everything is kept, a path or gs://bucket/path.
    tuned: a tuned.json, whose settings replace those of every arm.
    resume_with_changes: accept other values of options that change no result than those that the
      work directory was made with.
    stop_after: 'screen', 'rank' or 'pretrain': end once all up to this stage is there; a call
      without it goes on.
    profile_steps: how many steps of the first arm to trace into `profile` in the work directory.

  Returns:
    What results.json in the work directory holds: every score by arm, round and view. Nothing if
    it ended after a stage.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  from sjft_jax import repeats, tuned_settings

  if tuned is not None:
    config = tuned_settings.apply_tuned(config, tuned)
  return repeats.run(
    config,
    workdir,
    resume_with_changes=resume_with_changes,
    stop_after=stop_after,
    profile_steps=profile_steps,
  )


def plan(config: ConfigDict, *, tuned: str | os.PathLike[str] | None = None) -> Plan:
  """Estimate what a training takes, from the data sets and a calibration of some seconds.

  Args:
    config, tuned: as for `train`.

  Returns:
    Its stages with their seconds, its steps, its memory and its room on the disk;
    `sjft_jax.planning.print_plan` shows it.

  Raises:
    ValueError: an impossible option or input.
  """
  from sjft_jax import planning, tuned_settings

  if tuned is not None:
    config = tuned_settings.apply_tuned(config, tuned)
  return planning.plan(config)


def load(run: str | os.PathLike[str]) -> Classifier:
  """Load a trained run, or an export, as a classifier, whose `predict` gives class probabilities.

  Args:
    run: an arm in a work directory, such as 'runs/mine/arms/rounds', a work directory with one arm
      only, or a folder that `export` has written.

  Raises:
    ValueError: there is no trained network, or its files are damaged or of another version.
  """
  from sjft_jax.classifier import Classifier

  return Classifier(run)


def export(
  run: str | os.PathLike[str], output: str | os.PathLike[str], *, fused: bool = False
) -> Path:
  """Export the network of a run to a folder that needs neither the run nor this package.

  Args:
    run: an arm in a work directory, such as 'runs/mine/arms/rounds', or a work directory with one
      arm only.
    output: the folder to write. One that is there is replaced if it is an export and holds nothing
      else.
    fused: export the networks that each round ended with, whose probabilities are averaged.

  Returns:
    The folder, with the network as a program of StableHLO, its weights as safetensors, config.json
    and a model card; docs/export.md describes them.

  Raises:
    ValueError: there is no trained network, its files are damaged or of another version, or the
      output cannot be written.
  """
  from sjft_jax import exports

  return exports.export(run, output, fused=fused)
