"""Draw the method in one picture, docs/method.png, with the demo's images and true neighbours.

  python -m experiments.draw_method --output=docs/method.png

The package ranks the demo's 13,451 source images for its 105 target images (see configs/demo.py).
Four target images are shown with their true nearest neighbours; which of them are hard, and what
the heads predict, is an example. It takes about two minutes and needs the extra `demo`.
"""

import io
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import PIL.Image
from absl import app, flags
from matplotlib import patches
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import sjft_jax
from sjft_jax.data import demo

OUTPUT = flags.DEFINE_string('output', 'docs/method.png', 'Where the picture goes.')

# Indices of the target images, how many neighbours each has in the first round, and how many more
# it gets later.
ROWS = ((70, 3, 0), (96, 3, 0), (1, 3, 2), (60, 3, 4))
WIDTH, HEIGHT = 830, 404  # Pixels at a README's width; the file has twice as many.
INK, FAINT, PAPER = '#24272e', '#6b7280', '#fbfaf7'
TARGET, SOURCE, TRUNK, HARD = '#2a6f97', '#b8652a', '#59616e', '#b3384b'
SIDE, SMALL, PITCH, TOP = 56, 42, 65, 72  # Pixels: target, neighbour, from row to row, first row.
NEIGHBORS_LEFT = 166  # Where the neighbours begin.


def nearest_neighbors(k: int) -> np.ndarray:
  """Return the indices of the k source images nearest to every target image of the demo."""

  def write(data: demo.DemoTextures | demo.DemoDiverse, folder: Path) -> None:
    folder.mkdir()
    with ThreadPoolExecutor() as pool:
      # Names in the order of the images, which is the order of the ranking.
      files = [str(folder / f'{i:05d}.png') for i in range(len(data))]
      list(pool.map(lambda i: cv2.imwrite(files[i], data[i][..., ::-1]), range(len(data))))

  with tempfile.TemporaryDirectory() as scratch:
    target, source = Path(scratch) / 'target', Path(scratch) / 'source'
    write(demo.DemoTextures('train'), target)
    write(demo.DemoDiverse('train'), source)
    return sjft_jax.rank(target, source, k=k, descriptors={'resize': 72, 'crop': 64}).indices


def response_histograms(images: list[np.ndarray], num_bins: int = 9) -> list[np.ndarray]:
  """Return the histogram of each image's responses to one edge filter, in equal-mass bins."""
  responses = [cv2.Sobel(image.mean(axis=2), cv2.CV_64F, 1, 0).ravel() for image in images]
  edges = np.quantile(np.concatenate(responses), np.linspace(0, 1, num_bins + 1))
  return [np.histogram(values, edges)[0] / len(values) for values in responses]


def draw_picture(
  ax: Axes, x: float, y: float, side: float, image: np.ndarray, color: str, *, dashed: bool = False
) -> None:
  """Draw an image as a square in a frame, which is dashed for a neighbour of a later round."""
  ax.imshow(image, extent=(x, x + side, y + side, y), interpolation='lanczos', zorder=2)
  style = {'linestyle': (0, (2.2, 1.6)), 'linewidth': 1.5} if dashed else {'linewidth': 1.1}
  ax.add_patch(
    patches.Rectangle((x, y), side, side, fill=False, edgecolor=color, zorder=3, **style)
  )


def draw_arrow(
  ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str, *, width: float = 1.6
) -> None:
  """Draw a straight arrow."""
  ax.add_patch(
    patches.FancyArrowPatch(
      start,
      end,
      arrowstyle='-|>,head_length=5,head_width=2.8',
      color=color,
      linewidth=width,
      shrinkA=0,
      shrinkB=0,
      joinstyle='miter',
    )
  )


def draw_histogram(
  ax: Axes,
  x: float,
  y: float,
  width: float,
  height: float,
  shares: Sequence[float] | np.ndarray,
  color: str,
) -> None:
  """Draw bars; the tallest one fills the height."""
  bar = width / len(shares)
  for number, share in enumerate(shares):
    tall = height * share / max(shares)
    ax.add_patch(
      patches.Rectangle(
        (x + number * bar, y + height - tall), bar - 1, tall, color=color, linewidth=0
      )
    )


def draw_heading(ax: Axes, x: float, title: str, subtitle: str, color: str) -> None:
  """Write a title and a line below it along the top."""
  ax.text(x, 31, title, color=color, fontsize=10.5, fontweight='bold', va='center')
  ax.text(x, 50, subtitle, color=FAINT, fontsize=8.2, va='center')


def draw_head(
  ax: Axes, y: float, title: str, subtitle: str, shares: Sequence[float], color: str
) -> None:
  """Draw a head of the network as a box with the probabilities of its classes."""
  ax.add_patch(
    patches.FancyBboxPatch(
      (672, y),
      136,
      64,
      boxstyle='round,pad=0,rounding_size=7',
      facecolor='white',
      edgecolor=color,
      linewidth=1.5,
    )
  )
  ax.text(683, y + 21, title, color=color, fontsize=9.2, fontweight='bold', va='center')
  ax.text(683, y + 43, subtitle, color=FAINT, fontsize=8.2, va='center')
  draw_histogram(ax, 762, y + 33, 36, 17, shares, color)


def draw(neighbors: np.ndarray) -> plt.Figure:
  """Draw the method: images on the left, the network on the right, hardness along the bottom."""
  target, source = demo.DemoTextures('train'), demo.DemoDiverse('train')
  matplotlib.rcParams['font.family'] = 'DejaVu Sans'
  figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=200)
  ax = figure.add_axes((0, 0, 1, 1))
  ax.set_axis_off()
  # Light paper with round corners: it looks the same on a light and on a dark page.
  ax.add_patch(
    patches.FancyBboxPatch(
      (1, 1),
      WIDTH - 2,
      HEIGHT - 2,
      boxstyle='round,pad=0,rounding_size=12',
      facecolor=PAPER,
      edgecolor='#e3e0d8',
      linewidth=1,
    )
  )
  draw_heading(ax, 22, 'Target', 'few labelled images', TARGET)
  draw_heading(ax, NEIGHBORS_LEFT, 'Source', 'nearest by histograms of filter responses', SOURCE)
  draw_heading(ax, 526, 'Joint fine-tuning', 'one trunk learns from both', TRUNK)

  histograms = response_histograms([target[index] for index, _, _ in ROWS])
  for row, ((index, first, more), shares) in enumerate(zip(ROWS, histograms, strict=True)):
    y = TOP + row * PITCH
    is_hard = more > 0
    draw_picture(ax, 22, y, SIDE, target[index], HARD if is_hard else TARGET)
    draw_histogram(ax, 22 + SIDE + 10, y + 14, 44, 27, shares, '#9db8c8')
    draw_arrow(ax, (136, y + SIDE / 2), (NEIGHBORS_LEFT - 7, y + SIDE / 2), FAINT, width=1.2)
    for rank in range(first + more):
      x = NEIGHBORS_LEFT + rank * (SMALL + 4)
      image = source[int(neighbors[index, rank])]
      is_added = rank >= first
      draw_picture(ax, x, y + 7, SMALL, image, HARD if is_added else SOURCE, dashed=is_added)

  middle = TOP + (3 * PITCH + SIDE) / 2
  # The trunk: maps that become smaller from layer to layer.
  for number, tall in enumerate((112, 92, 74, 58, 44)):
    ax.add_patch(
      patches.FancyBboxPatch(
        (527 + number * 23, middle - tall / 2),
        15,
        tall,
        boxstyle='round,pad=0,rounding_size=3',
        facecolor='#dfe3e8',
        edgecolor=TRUNK,
        linewidth=1.2,
      )
    )
  ax.text(580, middle + 74, 'trunk', color=TRUNK, fontsize=9.2, ha='center', va='center')
  # A bracket around all rows: a step takes target images, each with one of its neighbours.
  right, tip = NEIGHBORS_LEFT + 7 * (SMALL + 4) + 4, (520, middle)
  top, low = TOP, TOP + 3 * PITCH + SIDE
  ax.plot(
    [right, right + 6, right + 6, right], [top, top, low, low], color='#b9bec6', linewidth=1.4
  )
  draw_arrow(ax, (right + 7, middle), tip, TRUNK)
  draw_arrow(ax, (640, middle - 9), (666, middle - 58), TARGET)
  draw_arrow(ax, (640, middle + 9), (666, middle + 58), SOURCE)
  draw_head(ax, middle - 93, 'target head', 'its classes', (0.2, 0.3, 1.0, 0.25, 0.12), TARGET)
  draw_head(ax, middle + 29, 'source head', 'its classes', (0.1, 0.5, 0.16, 0.9, 0.2), SOURCE)

  # From the target head's uncertainty back to the selection.
  bottom = HEIGHT - 36
  line = {'color': HARD, 'linewidth': 1.8, 'solid_capstyle': 'butt', 'solid_joinstyle': 'round'}
  ax.plot([808, 819, 819, 330], [middle - 61, middle - 61, bottom, bottom], **line)
  draw_arrow(ax, (330, bottom), (330, low + 5), HARD, width=1.8)
  ax.text(
    345,
    bottom - 13,
    'hardness: how unsure the network still is of each target image',
    color=HARD,
    fontsize=8.4,
    va='center',
  )
  ax.text(
    345,
    bottom + 14,
    'next round: hard images get more neighbours (dashed)',
    color=HARD,
    fontsize=8.4,
    va='center',
  )
  ax.set_xlim(0, WIDTH)
  ax.set_ylim(HEIGHT, 0)
  return figure


def save(figure: plt.Figure, path: str) -> None:
  """Write a PNG file with a palette of 256 colours, 122 KiB; with all colours it has 465."""
  with io.BytesIO() as file:
    figure.savefig(file, transparent=True)
    image = PIL.Image.open(file)
    image.quantize(256, method=PIL.Image.Quantize.FASTOCTREE).save(path, optimize=True)


def main(argv: list[str]) -> None:
  """Draw the picture."""
  del argv
  figure = draw(nearest_neighbors(max(first + more for _, first, more in ROWS)))
  save(figure, OUTPUT.value)
  print(f'{OUTPUT.value}: {Path(OUTPUT.value).stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
  app.run(main)
