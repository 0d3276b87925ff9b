"""The loop over rounds, with a training and predictions that are made up."""

import contextlib
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from sjft_jax.data.dataset import Domains, ImageArrays
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.rounds import run_rounds
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.selection.hardness import entropy
from sjft_jax.training import step

NUM_SOURCE = 15
# δ = 0.1, σ0 = 4 and σ1 = 2 neighbours.
OPTIONS = SelectionOptions(
  method='nearest', num_neighbors=2, rounds=3, delta=0.1, sigma0=2.0, sigma1=1.0
)
# Predictions after each round for the target's three training images, all of class 0.
SURE, UNSURE, WRONG = [0.999, 0.001], [0.7, 0.3], [0.2, 0.8]
PREDICTIONS = {3: [SURE, UNSURE, WRONG], 6: [SURE, WRONG, SURE], 9: [SURE, SURE, SURE]}
# K_i of each round that follows from them.
NUM_NEIGHBORS = [[2, 2, 2], [2, 4, 6], [2, 8, 6]]


def make_images(size):
  images = ImageArrays(np.arange(size * 192, dtype=np.uint8).reshape(size, 8, 8, 3))
  images.classes = ('a', 'b')
  return images


class FakeEvaluator:
  """Predicts what `PREDICTIONS` has for the step of the run."""

  options = SimpleNamespace(views=('ten_crop', 'center'))

  def __init__(self, events):
    self._events = events

  def __call__(self, state, data, view):
    self._events.append(('predict', len(data), view))
    return np.array(PREDICTIONS[int(state.step)][: len(data)], np.float32)


class FakeRun:
  """Notes what is done with it; the steps of a training take no time."""

  def __init__(self, trainer, events, first_step):
    self.trainer, self._events = trainer, events
    self._go_to(first_step, seconds=float(first_step))
    self.checkpoints = SimpleNamespace(wait=lambda: events.append(('wait',)))
    self.writer = SimpleNamespace(
      log=lambda number, metrics: events.append(('log', number, sorted(metrics))),
      flush=lambda: events.append(('flush',)),
    )

  def _go_to(self, number, seconds):
    state = step.TrainState(jnp.int32(number), {}, {}, ())
    self.progress = SimpleNamespace(step=number, state=state, seconds=seconds)

  def train(self, batches, stop):
    self._events.append(('train', self.progress.step, stop, batches))
    self._go_to(stop, self.progress.seconds + stop - self.progress.step)

  def reset_optimizer(self):
    self._events.append(('reset', self.progress.step))

  def save_variables(self, directory):
    assert not (directory.parent / 'round.npz').exists()  # It is written last.
    self._events.append(('save variables', directory.parent.name))


class FakeTrainer:
  """Trains 3 steps a round in a directory; the newest checkpoint is that of `first_step`."""

  fingerprint, seed = 'this', 0
  learning_rate_option = 'solver.learning_rate'
  logging = SimpleNamespace(selection_format='auto')

  def __init__(self, directory, first_step=0, restart_schedule=False, keep_rounds=True):
    self.directory = epath.Path(directory)
    self.domains = Domains(make_images(3), make_images(2), make_images(NUM_SOURCE))
    self.options = SimpleNamespace(
      steps=3, restart_schedule=restart_schedule, keep_rounds=keep_rounds
    )
    self.events = []
    self.evaluator = FakeEvaluator(self.events)
    self._first_step = first_step

  @contextlib.contextmanager
  def open(self, variables):
    self.events.append(('open', variables))
    yield FakeRun(self, self.events, self._first_step)

  def batches(self, subset, number, repeats):
    num_neighbors = None if subset is None else subset.num_neighbors.tolist()
    return number, num_neighbors, repeats.tolist()

  def named(self, *names):
    return [event for event in self.events if event[0] in names]


@pytest.fixture
def ranking():
  depth = OPTIONS.ranking_depth
  indices = np.stack([(np.arange(depth) + i) % NUM_SOURCE for i in range(3)]).astype(np.int32)
  return Ranking(indices, np.arange(3 * depth, dtype=np.float32).reshape(3, depth))


def run(trainer, ranking, **changes):
  return run_rounds(trainer, {'params': {}}, ranking, SelectionOptions(**vars(OPTIONS) | changes))


def assert_equal(rounds, others):
  for round_, other in zip(rounds, others, strict=True):
    for name, value in vars(round_).items():
      if name == 'test':
        assert value.keys() == other.test.keys()
        for view, p in value.items():
          np.testing.assert_array_equal(p, other.test[view])
      elif name != 'seconds':
        np.testing.assert_array_equal(value, getattr(other, name))


def test_each_round_selects_trains_scores_and_grows(tmp_path, ranking):
  trainer = FakeTrainer(tmp_path)
  rounds = run(trainer, ranking)
  assert [round_.num_neighbors.tolist() for round_ in rounds] == NUM_NEIGHBORS
  assert [round_.source_images for round_ in rounds] == [4, 8, 9]
  assert [round_.seconds for round_ in rounds] == [3.0, 6.0, 9.0]
  for round_, stop in zip(rounds, (3, 6, 9), strict=True):
    p = np.array(PREDICTIONS[stop], np.float32)
    np.testing.assert_array_equal(round_.hardness, entropy(p))
    np.testing.assert_array_equal(round_.is_correct, p[:, 0] > 0.5)
    assert round_.test.keys() == {'ten_crop', 'center'}
  assert trainer.events[0] == ('open', {'params': {}})
  assert trainer.named('train') == [
    ('train', 0, 3, (0, [2, 2, 2], [1, 1, 1])),
    ('train', 3, 6, (1, [2, 4, 6], [1, 2, 3])),
    ('train', 6, 9, (2, [2, 8, 6], [1, 4, 3])),
  ]
  # The order within a round: everything is on the disk before the round counts as finished.
  metrics = [
    'hardest',
    'hardness',
    'num_neighbors',
    'test_accuracy_center',
    'test_accuracy_ten_crop',
  ]
  assert trainer.events[2:9] == [
    ('wait',),
    ('predict', 3, 'center'),
    ('predict', 2, 'ten_crop'),
    ('predict', 2, 'center'),
    ('log', 3, metrics),
    ('flush',),
    ('save variables', '1'),
  ]
  for number in (1, 2, 3):
    assert (tmp_path / 'rounds' / str(number) / 'round.npz').exists()
    assert (tmp_path / 'rounds' / str(number) / 'selection.csv').exists()


@pytest.mark.parametrize('method', ['none', 'random', 'all', 'classes'])
def test_the_log_shows_no_neighbors_where_none_are_drawn_from(tmp_path, ranking, method):
  trainer = FakeTrainer(tmp_path)
  trainer.domains.source.labels[:] = np.arange(NUM_SOURCE) % 2
  run(trainer, ranking, method=method)
  logged = [names for _, _, names in trainer.named('log')]
  assert logged == [['hardness', 'test_accuracy_center', 'test_accuracy_ten_crop']] * 3


@pytest.mark.parametrize('wrong', [math.nan, math.inf])
def test_round_whose_last_update_overflowed_is_not_saved(tmp_path, ranking, monkeypatch, wrong):
  monkeypatch.setitem(PREDICTIONS, 6, [SURE, [wrong, 0.1], SURE])
  trainer = FakeTrainer(tmp_path)
  message = '1 of 3 images of .* not finite after step 6; lower solver.learning_rate$'
  for _ in range(2):  # What the checkpoint holds is found again.
    with pytest.raises(FloatingPointError, match=message):
      run(trainer, ranking)
  saved = [path.parent.name for path in tmp_path.glob('rounds/*/round.npz')]
  assert saved == ['1']


def test_a_finished_arm_is_not_opened(tmp_path, ranking, capsys):
  rounds = run(FakeTrainer(tmp_path), ranking)
  assert 'done before' not in capsys.readouterr().out
  trainer = FakeTrainer(tmp_path, first_step=9)
  assert_equal(run(trainer, ranking), rounds)
  assert trainer.events == []
  assert capsys.readouterr().out.splitlines() == [
    '  round 1 of 3: 4 source images, done before',
    '  round 2 of 3: 8 source images, done before',
    '  round 3 of 3: 9 source images, done before',
  ]


def test_a_resumed_arm_runs_the_remaining_rounds_only(tmp_path, ranking):
  rounds = run(FakeTrainer(tmp_path), ranking)
  (tmp_path / 'rounds' / '3' / 'round.npz').unlink()
  trainer = FakeTrainer(tmp_path, first_step=7)
  assert_equal(run(trainer, ranking), rounds)
  assert trainer.named('train') == [('train', 7, 9, (2, [2, 8, 6], [1, 4, 3]))]
  assert trainer.named('save variables') == [('save variables', '3')]


def test_an_unscored_round_whose_training_has_ended_is_scored(tmp_path, ranking):
  rounds = run(FakeTrainer(tmp_path), ranking)
  (tmp_path / 'rounds' / '3' / 'round.npz').unlink()
  trainer = FakeTrainer(tmp_path, first_step=9)
  assert_equal(run(trainer, ranking), rounds)
  assert trainer.named('train') == []
  assert len(trainer.named('predict')) == 3


def test_saved_rounds_are_trained_again_where_their_checkpoints_are_damaged(tmp_path, ranking):
  rounds = run(FakeTrainer(tmp_path), ranking)
  (tmp_path / 'rounds' / '3' / 'round.npz').unlink()
  trainer = FakeTrainer(tmp_path, first_step=2)
  assert_equal(run(trainer, ranking), rounds)
  # They are logged again, since the log was cut at the checkpoint, but not scored or saved.
  assert [event[1:3] for event in trainer.named('train')] == [(2, 3), (3, 6), (6, 9)]
  assert [event[1] for event in trainer.named('log')] == [3, 6, 9]
  assert len(trainer.named('predict')) == 3
  assert trainer.named('save variables') == [('save variables', '3')]


def test_the_schedule_restarts_at_the_first_step_of_each_round(tmp_path, ranking):
  trainer = FakeTrainer(tmp_path, restart_schedule=True)
  run(trainer, ranking)
  assert [event[1] for event in trainer.named('reset')] == [0, 3, 6]


def test_the_schedule_does_not_restart_within_a_round(tmp_path, ranking):
  run(FakeTrainer(tmp_path), ranking)
  for number in ('2', '3'):
    (tmp_path / 'rounds' / number / 'round.npz').unlink()
  trainer = FakeTrainer(tmp_path, first_step=4, restart_schedule=True)
  run(trainer, ranking)
  assert [event[1] for event in trainer.named('reset')] == [6]


def test_networks_of_rounds_are_kept_on_request_only(tmp_path, ranking):
  trainer = FakeTrainer(tmp_path, keep_rounds=False)
  run(trainer, ranking)
  assert trainer.named('save variables') == []


def test_random_images_are_as_many_as_the_growing_arm_has_in_the_same_round(tmp_path, ranking):
  trainer = FakeTrainer(tmp_path)
  rounds = run_rounds(
    trainer,
    {'params': {}},
    ranking,
    SelectionOptions(**vars(OPTIONS) | {'method': 'random'}),
    random_sizes=[4, 7, 11],
  )
  assert [round_.source_images for round_ in rounds] == [4, 7, 11]


def test_plain_fine_tuning_has_no_source_images(tmp_path):
  empty = np.zeros((3, 0))
  ranking = Ranking(empty.astype(np.int32), empty.astype(np.float32))
  trainer = FakeTrainer(tmp_path)
  rounds = run(trainer, ranking, method='none', rounds=1)
  assert [round_.source_images for round_ in rounds] == [0]
  assert trainer.named('train') == [('train', 0, 3, (0, None, [1, 1, 1]))]
  assert trainer.named('log') == [
    ('log', 3, ['hardness', 'test_accuracy_center', 'test_accuracy_ten_crop'])
  ]


def test_rounds_of_other_data_are_refused(tmp_path, ranking):
  run(FakeTrainer(tmp_path), ranking)
  trainer = FakeTrainer(tmp_path)
  trainer.fingerprint = 'other'
  with pytest.raises(ValueError, match='made from other data'):
    run(trainer, ranking)
