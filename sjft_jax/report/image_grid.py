"""Target images with some of their neighbours, as in the paper's Figure 2."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LINE, LINES = 144, 10, 15, 2  # pixels; two lines of text below each image


def image_grid(
  rows: Sequence[Sequence[tuple[UInt8[np.ndarray, 'height width 3'], str, str]]],
  headings: Sequence[str],
) -> Image.Image:
  """A grid of pictures, each a (image, first line, second line), under column headings."""
  font = ImageFont.load_default(size=12)
  cell_width, cell_height = SIDE + GAP, SIDE + LINES * LINE + GAP
  size = (GAP + cell_width * len(headings), GAP + LINE + 6 + cell_height * len(rows))
  page = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(page)
  for column, heading in enumerate(headings):
    draw.text((GAP + column * cell_width, GAP), heading, 'black', font)
  for r, row in enumerate(rows):
    top = GAP + LINE + 6 + r * cell_height
    for c, (image, *lines) in enumerate(row):
      left = GAP + c * cell_width
      page.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
      for number, line in enumerate(lines):
        while draw.textlength(line, font) > SIDE:
          line = line[:-2] + '…'
        draw.text((left, top + SIDE + number * LINE), line, 'dimgray' if number else 'black', font)
  return page
