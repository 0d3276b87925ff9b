"""The record of a run that never took place: any number of classes and images, drawn at random."""

import json

import numpy as np
from etils import epath

from sjft_jax import config, results
from sjft_jax.data.dataset import Domains
from sjft_jax.report import record
from sjft_jax.report.record import RunRecord
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.round_files import Round
from sjft_jax.runtime import artifacts

ARMS = ('probe', 'none', 'random', 'constant', 'rounds')


class Noise:
  """A data set of noise, which takes more bytes than any photograph; every picture is another."""

  def __init__(self, name, classes, images, seed):
    self.name, self.classes = name, tuple(classes)
    self.labels = (np.arange(images) * len(classes) // images).astype(np.int32)
    self.fingerprint, self._seed = name, seed

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return self.read_image(index, min_side=0)

  def read_image(self, index, *, min_side):
    del min_side
    rng = np.random.default_rng([self._seed, index])
    return rng.integers(0, 256, (110, 140, 3)).astype(np.uint8)

  def key(self, index):
    return f'{self.classes[self.labels[index]]}/{index}.jpg'


def make_run(
  workdir, *, classes, images, source_images=2000, rounds=3, k0=20, log_lines=20, is_finished=True
):
  """Return the record of a run, whose log and lists are in `workdir`.

  Args:
    workdir: a folder.
    classes: the names of the target's classes.
    images: training images, and as many test images.
    source_images: in 40 classes.
    rounds: how many there are, of each arm.
    k0: neighbours in the first round.
    log_lines: of each arm.
    is_finished: False: the last arm lacks its last round, and there are no results.
  """
  workdir, rng = epath.Path(workdir), np.random.default_rng(0)
  domains = Domains(
    Noise('target/train', classes, images, 1),
    Noise('target/test', classes, images, 2),
    Noise('source', [f'source class {n}' for n in range(40)], source_images, 3),
  )
  options = config.default()
  options.arms, options.selection.rounds = ARMS, rounds
  options.selection.num_neighbors, options.evaluation.views = k0, ('center',)
  depth = k0 * (1 + 4 * (rounds - 1))
  # Popular images, as in nature: the first ones are near everything.
  scores = rng.random((images, source_images)) ** np.linspace(1, 4, source_images)
  indices = np.argsort(-scores, axis=1)[:, :depth].astype(np.int32)
  divergences = np.sort(rng.gamma(2.0, 1.0, indices.shape), axis=1).astype(np.float32)
  ranking = Ranking(indices, divergences)
  arms = {}
  for arm in ARMS:
    num_neighbors = np.full(images, k0)
    arms[arm] = []
    num_rounds = 1 if arm in config.FROZEN_ARMS else rounds
    for number in range(num_rounds - (not is_finished and arm == ARMS[-1])):
      round_ = _make_round(rng, domains, num_neighbors, arm, number)
      arms[arm].append(round_)
      if arm == 'rounds':
        num_neighbors = num_neighbors + np.where(round_.is_correct, 0, 4 * k0)
    if arm not in config.FROZEN_ARMS:
      _write_log(workdir / 'arms' / arm / 'log.jsonl', arm, log_lines, rng)
  artifacts.write_json(workdir / 'versions.json', {'jax': '0.10', 'numpy': '2.0'})
  (workdir / 'bad_images.csv').write_text('data_set,image,reason\nsource,a.jpg,is truncated\n')
  summary = {'fingerprint': 'f', 'seed': 0, 'device': '1 × cpu', 'seconds': {'rank': 3.0}}
  summary |= results.summarize(arms, domains.test, ('center',)) if is_finished else {}
  return RunRecord(
    workdir=workdir,
    config=options,
    domains=domains,
    ranking=ranking,
    thumbnails=record.make_thumbnails(domains),
    rounds={
      arm: [record.digest(round_, domains.test) for round_ in made] for arm, made in arms.items()
    },
    results=summary if is_finished else None,
  )


def _make_round(rng, domains, num_neighbors, arm, number):
  target, test, _ = domains
  skill = 2.0 + number + ARMS.index(arm) / 4
  logits = rng.normal(0, 1, (len(test), len(test.classes))).astype(np.float32)
  logits[np.arange(len(test)), test.labels] += skill
  p = np.exp(2 * logits)
  hardness = rng.gamma(1.0, 1.0 / skill, len(target)).astype(np.float32)
  return Round(
    num_neighbors=num_neighbors.copy(),
    source_images=0 if arm in ('probe', 'none') else 1234 + number,
    hardness=hardness,
    is_correct=rng.random(len(target)) > hardness / 4,
    test={'center': p / p.sum(axis=1, keepdims=True)},
    seconds=60.0 * (number + 1),
  )


def _write_log(path, arm, lines, rng):
  path.parent.mkdir(parents=True)
  with path.open('w') as file:
    for step in range(1, lines + 1):
      values = {'target_loss': 3 * np.exp(-step / lines) + rng.normal(0, 0.1)}
      values['target_accuracy'] = 1 - np.exp(-3 * step / lines)
      if arm != 'none':
        values['source_loss'] = 6 * np.exp(-step / lines) + rng.normal(0, 0.1)
      file.write(json.dumps({'step': 10 * step, **values}) + '\n')
