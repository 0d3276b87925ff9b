import numpy as np
from PIL import Image

from sjft_jax.output.image_grid import GAP, LINE, LINES, SIDE, image_grid

TOP = GAP + LINE + 6


def make_grid(rows=1, line='', size=(20, 30)):
  image = np.full((*size, 3), (200, 100, 50), np.uint8)
  return np.asarray(image_grid([[(image, line, line)] * 2] * rows, ['one', 'two']))


def test_images_are_squares_below_headings_with_gaps_between():
  grid = make_grid(rows=3)
  assert grid.shape == (TOP + 3 * (SIDE + LINES * LINE + GAP), GAP + 2 * (SIDE + GAP), 3)
  image = (grid == (200, 100, 50)).all(axis=2)
  expected = np.zeros_like(image)
  for row in range(3):
    for column in range(2):
      top, left = TOP + row * (SIDE + LINES * LINE + GAP), GAP + column * (SIDE + GAP)
      expected[top : top + SIDE, left : left + SIDE] = True
  np.testing.assert_array_equal(image, expected)
  assert (grid[GAP:TOP] < 128).any()  # The headings.


def test_two_lines_of_text_stand_below_each_image_in_black_and_gray():
  grid = make_grid(line='M')
  first, second = (
    grid[TOP + SIDE + number * LINE : TOP + SIDE + (number + 1) * LINE] for number in range(2)
  )
  assert first.min() == 0
  assert second.min() == 105  # The colour 'dimgray'.


def test_long_lines_end_in_an_ellipsis_within_their_column():
  grid = make_grid(line='a long line of text ' * 5)
  text = grid[TOP + SIDE : TOP + SIDE + LINES * LINE]
  assert (text < 200).any()
  for left in (0, GAP + SIDE, GAP + 2 * SIDE + GAP):
    assert (text[:, left : left + GAP] == 255).all()


def test_images_are_scaled_as_by_pillow():
  image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
  grid = np.asarray(image_grid([[(image, '', '')]], ['']))
  scaled = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
  np.testing.assert_array_equal(grid[TOP : TOP + SIDE, GAP : GAP + SIDE], np.asarray(scaled))


def test_line_breaks_and_names_that_are_not_utf_8_are_drawn_as_escapes():
  image = np.zeros((4, 4, 3), np.uint8)
  page, expected = (
    np.asarray(image_grid([[(image, line, line)]], [line]))
    for line in ('a\nb\udcff', r'a\nb\udcff')
  )
  np.testing.assert_array_equal(page, expected)
