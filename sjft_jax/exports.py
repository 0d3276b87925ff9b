"""The folder that a trained network is exported to."""

import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import results as result_files
from sjft_jax import round_files, workdir
from sjft_jax.classifier import Classifier
from sjft_jax.config import FROZEN_ARMS, arm_config, arm_names
from sjft_jax.data import registry
from sjft_jax.data.image_list import is_list
from sjft_jax.models import build, preprocess, program
from sjft_jax.models.weights import exported, published
from sjft_jax.models.weights.libraries import Architecture
from sjft_jax.report import model_card, summary
from sjft_jax.report.model_card import ModelCard, Score
from sjft_jax.runtime import artifacts, console
from sjft_jax.training import significance

# What the card shows of the options: those that decide the network, and no places of files.
_SECTIONS = {'seed', 'model', 'images', 'evaluation'}
# Where the network is fine-tuned, these decide it too; the latter also where it is only pretrained.
_SELECTION_SECTIONS = {'bank', 'descriptors', 'selection'}
_TRAINING_SECTIONS = {'pretrain', 'training', 'loss', 'solver'}
# What the target was fine-tuned together with, by the method of selection.
_TRAININGS = {
  'none': 'alone',
  'random': 'together with source images drawn at random',
  'all': 'together with the whole source',
  'nearest': 'together with the source images that are nearest to each by their filter responses',
  'similar': 'together with the source images that are nearest to each by the trunk’s features',
  'classes': 'together with the source classes that are nearest to them by filter responses',
}
# Of the arm `probe`; `knn` has no network.
_FROZEN = (
  'not fine-tuned: its last layer alone was fitted to the target’s images, a logistic regression '
  'on the features of the trunk as '
)
_MAX_BORROWED = 20  # Source classes.


def export(
  run: str | os.PathLike[str], output: str | os.PathLike[str], *, fused: bool = False
) -> Path:
  """Do what `sjft_jax.export` does, and return the folder."""
  folder = _check_output(output)
  if exported.is_export(run):
    raise ValueError(f'{run} is an export already; give the run, or copy the folder')
  classifier = Classifier(run)
  networks = classifier.load_rounds() if fused else [classifier.network]
  description, options = classifier.network.description, classifier.options
  architecture = exported.find_architecture(description, options.crop)
  card = _make_card(classifier, folder.name, architecture, fused)
  console.stage(f'Exporting {classifier.directory}')
  with artifacts.atomic_folder(folder) as temporary:
    for name, network in zip(exported.weight_files(len(networks)), networks, strict=True):
      console.say(f'  {name}: {card.names}')
      _write(temporary / name, exported.serialize(network, architecture))
    console.say(f'  {exported.PROGRAM}: for {", ".join(program.PLATFORMS)}')
    model = build.rebuild(description, dtype=options.dtype, num_source_classes=0)
    shapes = exported.target_shapes(description, options)
    content = program.export_program(model, shapes, architecture, options.crop)
    _write(temporary / exported.PROGRAM, content)
    exported.write_config(temporary, networks[-1], options, architecture)
    _write(temporary / exported.CARD, model_card.render(card).encode())
    num_bytes = sum(path.stat().st_size for path in temporary.iterdir())
  console.say(f'{folder}: {num_bytes / 1e6:,.1f} MB; {exported.CARD} says how to use it')
  return folder


def _check_output(output: str | os.PathLike[str]) -> Path:
  """Return the folder to write.

  Raises:
    ValueError: it cannot be written, or holds what is no part of an export.
  """
  if artifacts.is_remote(output):
    raise ValueError(f'{output}: an export is written to a disk; give a path')
  folder = Path(artifacts.absolute_path(output)).resolve()
  if not folder.parent.is_dir() or not os.access(folder.parent, os.W_OK):
    raise ValueError(f'{output}: a folder cannot be written there; create {folder.parent} first')
  if folder.exists():
    if not folder.is_dir():
      raise ValueError(f'{output} is a file; give a folder')
    names = sorted(path.name for path in folder.iterdir())
    own = {exported.CONFIG, exported.PROGRAM, exported.CARD}
    others = [name for name in names if name not in own and not exported.is_weights(name)]
    if others:
      raise ValueError(
        f'{output} holds {others[0]}, which is no part of an export; give a new folder'
      )
    if names and exported.PROGRAM not in names:
      raise ValueError(f'{output} is a folder of something else; give a new one')
  return folder


def _write(path: Path, content: bytes) -> None:
  with artifacts.atomic_write(path) as file:
    file.write(content)


def _make_card(
  classifier: Classifier, name: str, architecture: Architecture | None, fused: bool
) -> ModelCard:
  """Return what the model card says, from what lies in the work directory."""
  network, prediction = classifier.network, classifier.options
  description, arm = network.description, network.directory.name
  config = ConfigDict(workdir.load_config(network.workdir))
  if arm in arm_names(config):  # Not in a copy under another name.
    config = arm_config(config, arm)
  results = result_files.read_results(network.workdir)
  if results is not None and arm not in results['arms']:
    results = None
  # Where a later checkpoint was damaged and deleted, the scores are those of another network.
  is_scored = results is not None and (fused or network.step == prediction.num_steps)
  mean, deviation = preprocess.NORMALIZATIONS[description['normalization']]
  has_source = config.selection.method != 'none' or config.pretrain.steps
  target = _name_data(config.target)
  source = _name_data(config.source) if has_source else ''
  pretrained = _name_weights(config.model.pretrained) if config.model.pretrained else ''
  data = [('target', f'{target}, {len(classifier.classes):,} classes')]
  if source:
    num_classes = network.params['source']['kernel'].shape[1]
    data.append(('source', f'{source}, {num_classes:,} classes'))
  data.append(('weights at the start', pretrained or 'random'))
  if config.pretrain.steps:
    data.append(('pretraining on the source', f'{config.pretrain.steps:,} steps'))
  data += _describe_rounds(network.directory, results, config)
  return ModelCard(
    name=name,
    network=description['name'],
    classes=classifier.classes,
    training=_describe_training(arm, config),
    step=network.step,
    num_steps=prediction.num_steps,
    files=exported.weight_files(prediction.num_rounds if fused else 1),
    library=architecture.library if architecture else '',
    architecture=architecture.name if architecture else '',
    has_image_size=exported.has_image_size(description),
    resize=prediction.resize,
    crop=prediction.crop,
    mean=mean,
    deviation=deviation,
    dtype=prediction.dtype,
    views=[view.replace('_', ' ') for view in prediction.views],
    num_test=results['test_images'] if results else 0,
    is_screened=config.screening.exclude_duplicates_of != 'none',
    scores=_score(classifier, fused) if is_scored else (),
    gain=_describe_gain(results, arm) if results and is_scored and not fused else '',
    target=target,
    source=source,
    pretrained=pretrained,
    data=data,
    borrowed=_count_classes(network.directory, config) if results else (),
    borrowed_unit='images' if config.selection.method == 'classes' else 'pairs',
    settings=_list_settings(config, arm),
  )


def _name_data(options: ConfigDict) -> str:
  """Return what the card calls a data set: where it lies on this machine is nobody's business."""
  names = options.dataset.split('+')
  paths = registry.values_per_dataset('path', options.path, len(names))
  return ' + '.join(
    (Path(path).name if name == 'folder' else '') or name
    for name, path in zip(names, paths, strict=True)
  )


def _name_weights(pretrained: str) -> str:
  is_name = pretrained in (*published.PUBLISHED, *published.PACKAGES, 'auto')
  return pretrained if is_name else Path(pretrained).name


def _list_settings(config: ConfigDict, arm: str) -> list[tuple[str, str, str]]:
  """Return the options that differ from their defaults, with both values as texts."""
  options = json.loads(config.to_json())
  is_trained = arm not in FROZEN_ARMS
  sections = _SECTIONS | (_SELECTION_SECTIONS if is_trained else set())
  sections |= _TRAINING_SECTIONS if is_trained or config.pretrain.steps else set()
  for section in ('model', 'bank'):
    options[section]['pretrained'] = _name_weights(options[section]['pretrained'])
  return [
    (name, json.dumps(value, ensure_ascii=False), json.dumps(default, ensure_ascii=False))
    for name, value, default in workdir.option_table(options)
    if name.partition('.')[0] in sections and value != default
  ]


def _score(classifier: Classifier, fused: bool) -> list[Score]:
  """Return the scores of the test images in each view."""
  scores = []
  for view in classifier.views:
    test = result_files.load_predictions(str(classifier.directory), view, fused)
    values = test.scores()
    is_correct = (test.probabilities.argmax(axis=1) == test.labels).astype(np.float64)
    for name, key, labels in (
      ('mean class accuracy', 'mean_class_accuracy', test.labels),
      ('top-1 accuracy', 'top1', np.zeros_like(test.labels)),
    ):
      _, error = significance.class_mean(is_correct, labels)
      low, high = np.clip(values[key] + 1.96 * error * np.array([-1, 1]), 0, 1)
      scores.append(Score(view.replace('_', ' '), name, values[key], float(low), float(high)))
  return scores


def _describe_gain(results: dict[str, Any], arm: str) -> str:
  """Return a line on the gain over plain fine-tuning, with its interval; '' if it is not known."""
  (row,) = (row for row in results['table'] if row['arm'] == arm)
  if 'gain' not in row:
    return ''
  low, high = (100 * (row['gain'] + sign * 1.96 * row['standard_error']) for sign in (-1, 1))
  return f'{summary.verdict(row)} 95 % interval of the gain: {low:+.1f} to {high:+.1f} points.'


def _describe_training(arm: str, config: ConfigDict) -> str:
  """Return what an arm was trained on, and together with what."""
  is_pretrained = bool(config.pretrain.steps)
  if arm in FROZEN_ARMS:
    return _FROZEN + ('pretrained on the source' if is_pretrained else 'it started')
  method = config.selection.method
  training = f'fine-tuned on the target’s images {_TRAININGS[method]}'
  if is_pretrained:
    return f'pretrained on the source, then {training}'
  return training + (', without a source' if method == 'none' else '')


def _describe_rounds(
  arm: epath.Path, results: dict[str, Any] | None, config: ConfigDict
) -> list[tuple[str, str]]:
  """Return what is known of the rounds of an arm: training images, and how many were borrowed."""
  lines: list[tuple[str, str]] = []
  if arm.name not in FROZEN_ARMS:
    steps = f'{config.selection.rounds} of {config.training.steps:,} steps'
    lines += [('rounds', steps), ('target images in a step', f'{config.training.batch_size:,}')]
  if results is None:
    return lines
  rounds = results['arms'][arm.name]['rounds']
  last = round_files.load_round(arm, len(rounds) - 1, results['fingerprint'])
  if last is not None:
    lines.insert(0, ('target images for training', f'{len(last.num_neighbors):,}'))
  if config.selection.method == 'none':
    return lines
  borrowed = ', '.join(f'{round_["source_images"]:,}' for round_ in rounds)
  lines.append(('source images that could be drawn, by round', borrowed))
  if config.selection.method in ('nearest', 'similar'):
    means = ', '.join(f'{round_["num_neighbors"]["mean"]:,.1f}' for round_ in rounds)
    lines.append(('neighbours of a target image, mean by round', means))
  return lines


def _count_classes(arm: epath.Path, config: ConfigDict) -> list[tuple[str, int, float]]:
  """Return the most borrowed source classes with their pairs, where images are named by class.

  Where whole classes are selected, a row of the selection is an image that all targets share.
  """
  source = config.source
  is_folder = source.dataset == 'folder' and not is_list(source.path)
  is_named = is_folder or source.dataset in registry.DEMOS
  if config.selection.method not in ('nearest', 'similar', 'classes') or not is_named:
    return []
  directory = round_files.round_dir(arm, config.selection.rounds - 1)
  if (path := directory / 'selection.csv').exists():
    with path.open('r') as file:
      counts = Counter(row['source'].partition('/')[0] for row in csv.DictReader(file))
  elif (path := directory / 'selection.parquet').exists():
    with path.open('rb') as file:
      names = pyarrow.parquet.read_table(file, columns=['source'])['source']
    counts = Counter(name.as_py().partition('/')[0] for name in names)
  else:
    return []
  total = sum(counts.values())
  return [(name, pairs, pairs / total) for name, pairs in counts.most_common(_MAX_BORROWED)]
