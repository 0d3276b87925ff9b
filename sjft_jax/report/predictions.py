"""How images are classified: by class, the surest mistakes, and hardness by round."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from sjft_jax import config
from sjft_jax.report import charts
from sjft_jax.report.page import Chart, Picture, Section, Table
from sjft_jax.report.record import RunRecord
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.training import metrics

_MAX_MISTAKES = 24
_MAX_CELLS = 100  # Classes beyond which a confusion matrix is no picture any more.
_MAX_CONFUSIONS = 15
_QUANTILES = {'q10': 0.1, 'q25': 0.25, 'median': 0.5, 'q75': 0.75, 'q90': 0.9}


def class_section(run: RunRecord) -> Section:
  """Show the accuracy of each class, and which classes are taken for which."""
  test, main = run.domains.test, run.main_arm
  arms = [arm for arm, rounds in run.rounds.items() if rounds]
  accuracies = {
    arm: metrics.class_accuracies(run.rounds[arm][-1].predicted, test.labels, len(test.classes))
    for arm in arms
  }
  images = np.bincount(test.labels, minlength=len(test.classes))
  present = np.flatnonzero(images)
  order = present[np.argsort(accuracies[main][present], kind='stable')]
  drawn = [arm for arm in arms if arm in ('none', main)]
  figure = Chart(
    caption='Accuracy of each class, the hardest first',
    description='Accuracy of each class; numbers are in the table below.',
    spec=charts.class_accuracies(
      [
        {'class': test.classes[c], 'arm': run.title(arm), 'accuracy': float(accuracies[arm][c])}
        for c in order
        for arm in drawn
      ],
      run.titles,
      [test.classes[c] for c in order],
    ),
    is_tall=True,
  )
  table = Table(
    caption='Accuracy of each class in every arm',
    headings=('class', 'test images', *(run.title(arm) for arm in arms)),
    rows=[
      [test.classes[c], f'{images[c]:,}', *(f'{accuracies[arm][c]:.1%}' for arm in arms)]
      for c in order
    ],
    numbers=range(1, 2 + len(arms)),
    is_folded=True,
  )
  return Section(
    id='classes',
    title='Classes',
    text=[f'Test images after the newest round, {run.view}.'],
    charts=[figure, *_confusion_chart(run)],
    tables=[_confusion_table(run), table],
  )


def _confusion(run: RunRecord) -> Int[np.ndarray, 'true predicted']:
  test = run.domains.test
  confusion = np.zeros((len(test.classes), len(test.classes)), np.int64)
  np.add.at(confusion, (test.labels, run.rounds[run.main_arm][-1].predicted), 1)
  return confusion


def _confusion_chart(run: RunRecord) -> Iterator[Chart]:
  names, confusion = run.domains.test.classes, _confusion(run)
  if len(names) > _MAX_CELLS:
    return
  images = confusion.sum(axis=1)
  cells = [
    {
      'row': names[true],
      'column': names[predicted],
      'count': int(confusion[true, predicted]),
      'share': float(confusion[true, predicted] / images[true]),
    }
    for true, predicted in np.argwhere(confusion)
  ]
  caption = f'Confusion matrix of the arm “{run.title(run.main_arm)}”'
  yield Chart(
    caption=caption,
    description=f'{caption}. The most frequent confusions are in the table below.',
    spec=charts.counts(
      cells, names, names, y='true class', x='predicted class', share='of the class'
    ),
  )


def _confusion_table(run: RunRecord) -> Table:
  names, confusion = run.domains.test.classes, _confusion(run)
  images = confusion.sum(axis=1)
  np.fill_diagonal(confusion, 0)
  order = np.argsort(-confusion, axis=None, kind='stable')[:_MAX_CONFUSIONS]
  pairs = [np.unravel_index(i, confusion.shape) for i in order]
  return Table(
    caption=f'Most frequent confusions of the arm “{run.title(run.main_arm)}”',
    headings=('true class', 'taken for', 'test images'),
    rows=[
      [names[true], names[predicted], f'{confusion[true, predicted]:,} of {images[true]:,}']
      for true, predicted in pairs
      if confusion[true, predicted]
    ],
    numbers=(2,),
  )


def mistake_section(run: RunRecord) -> Section:
  """Show the test images that are classified wrongly with the highest probability."""
  test, last = run.domains.test, run.rounds[run.main_arm][-1]
  wrong = np.flatnonzero(last.predicted != test.labels)
  order = wrong[np.argsort(-last.confidence[wrong], kind='stable')]
  shown = [int(i) for i in order[:_MAX_MISTAKES]]
  run.thumbnails.prepare([('test', i) for i in shown])
  pictures = [
    Picture(
      picture=run.thumbnails['test', i],
      alt=f'{test.classes[test.labels[i]]}, {test.key(i)}',
      lines=[
        f'is {test.classes[test.labels[i]]}',
        f'taken for {test.classes[last.predicted[i]]}',
        f'at {last.confidence[i]:.1%}',
      ],
    )
    for i in shown
  ]
  text = (
    f'{len(wrong):,} of {len(test):,} test images are classified wrongly by the arm '
    f'“{run.title(run.main_arm)}”.'
  )
  if shown:
    text += ' These are the ones it is surest of.'
  return Section(id='mistakes', title='Most confident mistakes', text=[text], pictures=pictures)


def hardness_section(run: RunRecord) -> Section:
  """Show how hard the training images are after each round, and how neighbourhoods grow by it."""
  arm = run.main_arm
  selection = SelectionOptions(**config.arm_config(run.config, arm).selection)
  has_neighbors, delta = selection.has_own_neighbors, selection.delta
  boxes, rows = [], []
  for number, round_ in enumerate(run.rounds[arm], 1):
    values = np.quantile(round_.hardness, list(_QUANTILES.values()))
    boxes.append({'round': number, **dict(zip(_QUANTILES, map(float, values), strict=True))})
    unsure = round_.is_correct & (round_.hardness >= delta)
    rows.append(
      [
        str(number),
        f'{round_.num_neighbors.mean():,.1f}' if has_neighbors else '–',
        f'{round_.num_neighbors.max():,}' if has_neighbors else '–',
        f'{round_.source_images:,}' if round_.source_images else '–',
        f'{round_.hardness.mean():.3f}',
        f'{np.count_nonzero(~round_.is_correct):,}',
        f'{np.count_nonzero(unsure):,}',
        f'{np.count_nonzero(round_.is_correct & ~unsure):,}',
      ]
    )
  caption = 'Entropy of the predictions for training images: quartiles, 10 % and 90 %'
  table = Table(
    caption=f'Rounds of the arm “{run.title(arm)}”, {len(run.domains.target):,} training images',
    headings=(
      'round',
      'neighbours, mean',
      'largest',
      'source images',
      'entropy, mean',
      'wrong',
      'right, unsure',
      'right, sure',
    ),
    rows=rows,
    numbers=range(8),
    remark=f'Unsure means an entropy of δ = {delta} nats or more. Images that are wrong or unsure '
    'after a round have more neighbours in the next one, in the arm that grows.',
  )
  return Section(
    id='hardness',
    title='Hardness by round',
    charts=[
      Chart(
        caption=caption,
        description=f'{caption}. Means are in the table.',
        spec=charts.quantiles(boxes),
      )
    ],
    tables=[table],
  )
