"""What was borrowed: the neighbours of target images, source classes, and much borrowed images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from sjft_jax.data.dataset import class_names
from sjft_jax.report import charts
from sjft_jax.report.page import Chart, Explorer, Picture, Section, Table
from sjft_jax.report.record import RoundDigest, RunRecord
from sjft_jax.report.thumbnails import Name

# Neighbours that the page shows of a target image, by rank.
_RANKS = (1, 2, 3, 4, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
# Bytes of target images and their neighbours, and the most target images among them: the page stays
# below 10 MB, and drawing it for the first time takes seconds.
_PICTURE_BYTES, _MAX_TARGETS = 4_500_000, 300
_BLOCK = 25  # Target images whose pictures are made at once.
_MAX_HUBS = 24
# Source classes in the chart and in the table, and target classes in the chart.
_CHART_CLASSES, _TABLE_CLASSES, _CHART_COLUMNS = 25, 30, 100


def neighbor_section(run: RunRecord) -> Section | None:
  """Show the paper's Figure 2, for target images that the reader chooses."""
  if run.selecting_arm is None:
    return None
  rounds, target = run.rounds[run.selecting_arm], run.domains.target
  hardness = rounds[-1].hardness
  shown = _choose_targets(run, rounds)
  shown.sort(key=lambda index: (-hardness[index], index))
  pictures: dict[int, int] = {}  # The position of each source image on the page.
  targets, contents = [], []
  for index in shown:
    name, label = class_names(target, index), int(target.labels[index])
    targets.append(
      {
        'picture': run.thumbnails['target', index],
        'name': f'{name}, {target.key(index)}',
        'class': name,
        'hardness': f'{hardness[index]:.2f} nats',
      }
    )
    contents.append(
      {
        'title': f'{name}: {target.key(index)}',
        'label': label,
        'caption': 'How its neighbourhood grew',
        'rounds': [
          [
            str(number),
            f'{round_.num_neighbors[index]:,}',
            f'{round_.hardness[index]:.3f}',
            'right' if round_.is_correct[index] else 'wrong',
          ]
          for number, round_ in enumerate(rounds, 1)
        ],
        'neighbors': [
          _neighbor(run, rounds, index, rank, pictures) for rank in _shown_ranks(rounds, index)
        ],
      }
    )
  labels = np.unique(target.labels[shown]).tolist()
  explorer = Explorer(
    classes=[(label, target.classes[label]) for label in labels],
    targets=targets,
    content={
      'headings': ['round', 'neighbours', 'entropy in nats', 'predicted'],
      'pictures': [run.thumbnails['source', index] for index in pictures],
      'targets': contents,
    },
  )
  text = (
    f'A target image and some of the source images that the arm “{run.title(run.selecting_arm)}” '
    'pairs it with, as in the paper’s Figure 2: the nearest by the divergence of their filter '
    'responses. Where neighbourhoods grow, images that are hard by the entropy of their predicted '
    'classes have more neighbours in the next round.'
  )
  if len(shown) < len(target):
    num_classes = len(np.unique(target.labels))
    which = 'the hardest of each class, then the next hardest'
    if len(labels) < num_classes:
      which = f'the hardest of {len(labels):,} of the {num_classes:,} classes'
    text += f' {len(shown):,} of {len(target):,} training images are shown: {which}.'
  return Section(id='neighbours', title='What each image borrowed', text=[text], explorer=explorer)


def _choose_targets(run: RunRecord, rounds: Sequence[RoundDigest]) -> list[int]:
  """Choose the target images to show, the hardest of each class first, within a budget of bytes."""
  labels, hardness = run.domains.target.labels, rounds[-1].hardness
  order = np.lexsort((-hardness, labels))
  starts = np.searchsorted(labels[order], labels[order])
  position = np.empty(len(order), int)  # Of an image among those of its class, from hard to easy.
  position[order] = np.arange(len(order)) - starts
  candidates = [int(i) for i in np.lexsort((-hardness, position))[:_MAX_TARGETS]]
  chosen: list[int] = []
  names: set[Name] = set()
  num_bytes = 0
  for start in range(0, len(candidates), _BLOCK):
    needed: dict[int, set[Name]] = {
      index: {
        ('target', index),
        *(('source', int(run.ranking.indices[index, r - 1])) for r in _shown_ranks(rounds, index)),
      }
      for index in candidates[start : start + _BLOCK]
    }
    run.thumbnails.prepare(sorted(set().union(*needed.values())))
    for index, own in needed.items():
      num_bytes += sum(len(run.thumbnails[name]) for name in own - names)
      if chosen and num_bytes > _PICTURE_BYTES:
        return chosen
      names |= own
      chosen.append(index)
  return chosen


def _shown_ranks(rounds: Sequence[RoundDigest], index: int) -> list[int]:
  return [rank for rank in _RANKS if rank <= rounds[-1].num_neighbors[index]]


def _neighbor(
  run: RunRecord, rounds: Sequence[RoundDigest], index: int, rank: int, pictures: dict[int, int]
) -> dict[str, Any]:
  source = int(run.ranking.indices[index, rank - 1])
  name = class_names(run.domains.source, source)
  first = next(n for n, round_ in enumerate(rounds, 1) if round_.num_neighbors[index] >= rank)
  return {
    'picture': pictures.setdefault(source, len(pictures)),
    'alt': f'{name}, {run.domains.source.key(source)}',
    'lines': [
      name,
      f'neighbour {rank:,}',
      f'{run.ranking.divergences[index, rank - 1]:.3g} nats',
      *([f'since round {first}'] if first > 1 else []),
    ],
  }


def class_section(run: RunRecord) -> Section | None:
  """Show which source classes were borrowed, and by which target classes."""
  if run.selecting_arm is None:
    return None
  target, _, source = run.domains
  images, classes = run.borrowing
  is_borrowed = images > 0
  if source.labels.ndim > 1:
    # A product of truth values alone would be one: whether any is borrowed.
    borrowed, total = source.labels[is_borrowed].sum(axis=0), source.labels.sum(axis=0)
  else:
    borrowed = np.bincount(source.labels[is_borrowed], minlength=len(source.classes))
    total = np.bincount(source.labels, minlength=len(source.classes))
  pairs = classes.sum(axis=0)
  order = np.argsort(-pairs, kind='stable')[: np.count_nonzero(pairs)]
  rows = []
  for label in order[:_TABLE_CLASSES]:
    by_target = np.argsort(-classes[:, label], kind='stable')[:4]
    names = [f'{target.classes[t]} ({classes[t, label]:,})' for t in by_target if classes[t, label]]
    rows.append(
      [
        source.classes[label],
        f'{borrowed[label]:,} of {total[label]:,}',
        f'{pairs[label]:,}',
        f'{pairs[label] / images.sum():.1%}',
        ', '.join(names),
      ]
    )
  number = len(run.rounds[run.selecting_arm])
  num_classes = f'{len(order):,} of {len(source.classes):,} source classes'
  table = Table(
    caption=f'Source classes by the pairs of a target image and a neighbour in round {number}',
    headings=(
      'source class',
      'images borrowed',
      'pairs',
      'share',
      'target classes that borrow most',
    ),
    rows=rows,
    numbers=(1, 2, 3),
    remark=f'The {len(rows)} most borrowed of {len(order):,}.' if len(rows) < len(order) else '',
  )
  text = (
    f'In round {number}, {np.count_nonzero(images):,} of {len(source):,} source images could be '
    f'drawn, from {num_classes}.'
  )
  return Section(
    id='classes-borrowed',
    title='Which source classes were borrowed',
    text=[text],
    # Images of a source with several labels may show no class at all.
    charts=[_borrowing_chart(run, classes, order[:_CHART_CLASSES])] if rows else [],
    tables=[table] if rows else [],
  )


def _borrowing_chart(
  run: RunRecord,
  classes: Int[np.ndarray, 'target_class source_class'],
  shown: Int[np.ndarray, ' row'],
) -> Chart:
  target, _, source = run.domains
  # Those target classes that borrow most from the source classes shown.
  columns = np.sort(np.argsort(-classes[:, shown].sum(axis=1), kind='stable')[:_CHART_COLUMNS])
  # Not the sums of `classes`, where a source image with several classes counts for each.
  num_neighbors = run.rounds[run.selecting_arm or ''][-1].num_neighbors
  totals = np.bincount(target.labels, num_neighbors, len(target.classes))
  cells = [
    {
      'row': source.classes[s],
      'column': target.classes[t],
      'count': int(classes[t, s]),
      'share': float(classes[t, s] / totals[t]),
    }
    for s in shown
    for t in columns
    if classes[t, s]
  ]
  caption = 'How much of each target class’s neighbourhood the most borrowed source classes are'
  return Chart(
    caption=caption,
    description=f'{caption}. The table lists the target classes that borrow most.',
    spec=charts.counts(
      cells,
      [source.classes[s] for s in shown],
      [target.classes[t] for t in columns],
      y='source class',
      x='target class',
      share='of its pairs',
    ),
  )


def hub_section(run: RunRecord) -> Section | None:
  """Show the images that very many target images borrowed."""
  if run.selecting_arm is None:
    return None
  target, _, source = run.domains
  images, _ = run.borrowing
  order = np.argsort(-images, kind='stable')
  shown = [int(i) for i in order[:_MAX_HUBS] if images[i] > 1]
  if not shown:
    return None
  run.thumbnails.prepare([('source', i) for i in shown])
  pictures = [
    Picture(
      picture=run.thumbnails['source', i],
      alt=f'{class_names(source, i)}, {source.key(i)}',
      lines=[class_names(source, i), f'by {images[i]:,} of {len(target):,}'],
    )
    for i in shown
  ]
  cumulative = np.cumsum(images[order])
  half = int(np.searchsorted(cumulative, cumulative[-1] / 2)) + 1
  text = (
    f'The {len(shown)} source images that are neighbours of the most target images, and of how '
    f'many. Half of all {cumulative[-1]:,} pairs come from {half:,} of the '
    f'{np.count_nonzero(images):,} images borrowed. Images that are near everything are a known '
    'weakness of nearest neighbours in many dimensions.'
  )
  return Section(id='hubs', title='Images borrowed by very many', text=[text], pictures=pictures)
