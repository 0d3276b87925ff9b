import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.data import transforms
from sjft_jax.data.dataset import ImageArrays
from sjft_jax.runtime import distributed
from sjft_jax.runtime.host_memory import OutOfMemoryError
from sjft_jax.training.evaluation import (
  EvaluationOptions,
  Evaluator,
  group_by_shape,
  predict,
)


@pytest.mark.parametrize('views', [(1,), (3,), (2, 2)])
@pytest.mark.parametrize('sizes', [[4, 4, 1], [5], [3, 2]])
def test_predict_averages_views_and_drops_no_image(views, sizes):
  """The 'probabilities' are the first two pixels of an image, on four devices."""
  rng = np.random.default_rng(0)
  images = [
    rng.integers(0, 255, (sum(sizes), count, 2 + scale, 2 + scale, 3)).astype(np.uint8)
    for scale, count in enumerate(views)
  ]
  shapes = set()

  def predict_step(state, batch):
    shapes.add(batch.shape)
    return jax.pmap(lambda x: x[:, 0, :2, 0].astype(jnp.float32) * state)(batch)

  cuts = np.cumsum(sizes)[:-1]
  batches = zip(*(np.split(part, cuts) for part in images), strict=True)
  result = predict(predict_step, np.float32(2), batches)
  expected = [2.0 * part[:, :, 0, :2, 0].mean(axis=1) for part in images]
  np.testing.assert_allclose(result, np.mean(expected, axis=0), rtol=1e-6)
  assert len(shapes) == len(views)  # Each size compiled once.


def test_images_of_one_shape_are_grouped_in_order():
  widths = [4, 8, 4, 4, 8, 6, 4, 8, 4]
  images = [
    (np.full((1, 2, 4, width, 3), i), np.full((1, 1, 8, 2 * width, 3), i))
    for i, width in enumerate(widths)
  ]
  groups = list(group_by_shape(iter(images), 4))
  # A batch of four squares holds two images of twice the length; 4 / 1.5 leaves two.
  assert [indices for indices, _ in groups] == [[1, 4], [0, 2, 3, 6], [5], [7], [8]]
  for indices, batch in groups:
    for size, views in enumerate(batch):
      expected = np.concatenate([images[i][size] for i in indices])
      np.testing.assert_array_equal(views, expected)


def test_an_image_longer_than_a_batch_is_a_batch():
  images = [(np.zeros((1, 2, 4, 16, 3)),)] * 3
  assert [indices for indices, _ in group_by_shape(images, 2)] == [[0], [1], [2]]


def record_batches(batches):
  """Return a 'network' whose probabilities are mean intensities of three colours."""

  def network(state, batch):
    batches.append(batch)
    return jax.pmap(lambda x: x.astype(jnp.float32).mean((1, 2)) * state)(batch)

  return network


def test_multi_scale_predictions_are_of_each_whole_image_in_order():
  rng = np.random.default_rng(0)
  sizes = [(20, 20), (20, 31), (31, 20), (20, 20), (64, 20), (20, 29), (20, 20), (22, 20), (9, 90)]
  images = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
  # The ends of a long image differ from its middle.
  images[4][:15] = images[1][:, :5] = 255
  batches = []
  network = record_batches(batches)
  size = transforms.ImageSize(resize=18, crop=16)
  evaluator = Evaluator(network, size, EvaluationOptions(views=('multi_scale',), batch_size=4))
  result = evaluator(np.float32(2), ImageArrays(images), 'multi_scale')
  for p, image in zip(result, images, strict=True):
    views = transforms.multi_scale(image, resize=18, crop=16)
    expected = np.mean([2 * view.mean((0, 1, 2)) for view in views], axis=0)
    np.testing.assert_allclose(p, expected, rtol=1e-5)
  aspects = {
    transforms.round_aspect(max(s) / min(s)) * (1 if s[0] > s[1] else -1)
    for s in sizes
    if s != (9, 90)
  }
  shapes = {batch.shape for batch in batches}
  assert len(shapes) == 5 * (len(aspects) + 1)  # Each shape is compiled once.


def test_multi_scale_predictions_of_square_images_are_those_of_whole_batches():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (11, 20, 20, 3)).astype(np.uint8)
  batches = []
  network = record_batches(batches)
  size = transforms.ImageSize(resize=18, crop=16)
  evaluator = Evaluator(network, size, EvaluationOptions(views=('multi_scale',), batch_size=4))
  result = evaluator(np.float32(2), ImageArrays(images), 'multi_scale')
  grouped = list(batches)
  batches.clear()
  views = [transforms.multi_scale(image, resize=18, crop=16) for image in images]
  whole = [tuple(map(np.stack, zip(*views[i : i + 4], strict=True))) for i in (0, 4, 8)]
  np.testing.assert_array_equal(result, predict(network, np.float32(2), whole))
  for ours, theirs in zip(grouped, batches, strict=True):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('number', [1, 2, 3, 10])
def test_processes_predict_batches_alike_in_number_and_shape_and_each_image_once(
  number, monkeypatch
):
  """Three processes, of which each in turn is this one; the parts are joined here."""
  images = np.random.default_rng(0).integers(0, 255, (number, 16, 16, 3)).astype(np.uint8)
  batches = []
  network = record_batches(batches)
  size = transforms.ImageSize(resize=16, crop=16)
  evaluator = Evaluator(network, size, EvaluationOptions(views=('center',), batch_size=3))
  expected = evaluator(np.float32(2), ImageArrays(images), 'center')
  parts, shapes_by_process = [], []
  monkeypatch.setattr(distributed, 'gather_shards', lambda part, size: part)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  for process in range(3):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    batches.clear()
    parts.append(evaluator(np.float32(2), ImageArrays(images), 'center'))
    start, stop = distributed.shard_bounds(number)
    assert len(parts[-1]) == stop - start
    shapes_by_process.append([batch.shape for batch in batches])
  np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-6)
  assert shapes_by_process[0] == shapes_by_process[1] == shapes_by_process[2]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({}, 'lower evaluation.batch_size from 4 to 2$'),
    ({'batch_size_option': 'batch_size'}, 'lower batch_size from 4 to 2$'),
  ],
)
def test_where_memory_runs_out_the_option_has_the_name_that_users_know(options, message):
  def run_out(state, images):
    raise MemoryError

  size = transforms.ImageSize(resize=4, crop=4)
  evaluator = Evaluator(
    run_out, size, EvaluationOptions(views=('center',), batch_size=4), **options
  )
  with pytest.raises(OutOfMemoryError, match=message):
    evaluator(None, ImageArrays([np.zeros((4, 4, 3), np.uint8)]), 'center')
