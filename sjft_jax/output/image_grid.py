"""Draw images in a grid with captions, as in the paper's Figure 2."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from sjft_jax.runtime import console

# Pixels: the side of an image, the gap between images, and the height of a line of text.
SIDE, GAP, LINE = 144, 10, 15
LINES = 2  # Lines of text below each image.

# An image and the two lines of its caption.
Cell = tuple[UInt8[np.ndarray, 'height width 3'], str, str]


def image_grid(rows: Sequence[Sequence[Cell]], headings: Sequence[str]) -> Image.Image:
  """Draw rows of images with captions below column headings.

  Args:
    rows: RGB images of any sizes, which are scaled to squares, and their captions; lines that are
      too long end in an ellipsis, and characters without a shape are escapes.
    headings: one for each column.
  """
  font = ImageFont.load_default(size=12)
  cell_width, cell_height = SIDE + GAP, SIDE + LINES * LINE + GAP
  header_height = GAP + LINE + 6
  size = (GAP + cell_width * len(headings), header_height + cell_height * len(rows))
  page = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(page)
  for column, heading in enumerate(headings):
    draw.text((GAP + column * cell_width, GAP), console.printable(heading), 'black', font)
  for row, cells in enumerate(rows):
    top = header_height + row * cell_height
    for column, (image, *lines) in enumerate(cells):
      left = GAP + column * cell_width
      page.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
      for number, line in enumerate(map(console.printable, lines)):
        while draw.textlength(line, font) > SIDE:
          line = line[:-2] + '…'
        draw.text((left, top + SIDE + number * LINE), line, 'dimgray' if number else 'black', font)
  return page
