"""Trainers of a small network: shared steps, the choice of micro-batches, and their runs."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from sjft_jax import config
from sjft_jax.data.batches import SourceBatches
from sjft_jax.data.dataset import Domains, ImageArrays
from sjft_jax.models import joint
from sjft_jax.runtime import artifacts
from sjft_jax.runtime.checkpoints import Checkpoints
from sjft_jax.selection.subset import Subset
from sjft_jax.training.pretrain import pretrain_trunk
from sjft_jax.training.trainer import TrainerFactory, TrainingOptions

SIDE, TARGET_IMAGES, SOURCE_IMAGES = 8, 12, 10
SUBSET = Subset(np.arange(SOURCE_IMAGES)[None], np.full(TARGET_IMAGES, SOURCE_IMAGES))
OPTIONS = {
  'images.resize': SIDE,
  'images.crop': SIDE,
  'training.steps': 4,
  'training.batch_size': 8,
  'training.accumulation': 2,
  'training.augment': 'resnet',
  'training.checkpoint_every': 100,
  'logging.every': 1,
  'logging.tensorboard': False,
}


class Trunk(nn.Module):
  """One linear layer on the mean colour of an image, which counts its calls as a statistic."""

  @nn.compact
  def __call__(self, images, train, is_source):
    calls = self.variable('batch_stats', 'calls', lambda: jnp.zeros(()))
    if train:
      calls.value += 1
    return nn.Dense(4, name='conv1')(jnp.mean(images, axis=(1, 2)))


def make_data(name, images, labels, num_classes):
  random = np.random.default_rng(images)
  data = ImageArrays(random.integers(0, 256, (images, SIDE, SIDE, 3), np.uint8))
  data.name, data.labels = name, labels
  data.classes = tuple(f'class {i}' for i in range(num_classes))
  return data


def make_domains(*, multi_label=False):
  labels = np.arange(SOURCE_IMAGES, dtype=np.int32) % 5
  if multi_label:
    labels = np.eye(5, dtype=bool)[labels]
  return Domains(
    target=make_data('target', TARGET_IMAGES, np.arange(TARGET_IMAGES, dtype=np.int32) % 3, 3),
    test=make_data('test', 6, np.arange(6, dtype=np.int32) % 3, 3),
    source=make_data('source', SOURCE_IMAGES, labels, 5),
  )


def make_factory(workdir, domains):
  model = joint.Joint(Trunk(), num_target_classes=3, num_source_classes=5)
  variables = joint.init(model, jax.random.key(0), SIDE)
  return TrainerFactory(epath.Path(workdir), 'a run', domains, model, variables), variables


def make_config(**options):
  c = config.default()
  c.update_from_flattened_dict(OPTIONS | options)
  return c


@pytest.fixture(scope='module')
def factory(tmp_path_factory):
  """A factory whose trainers share their compiled steps among the tests."""
  return make_factory(tmp_path_factory.mktemp('run'), make_domains())


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ('options', 'others', 'is_shared'),
  [
    ({}, {}, True),
    ({}, {'training.steps': 9, 'training.batch_size': 4, 'selection.rounds': 1}, True),
    ({}, {'solver.learning_rate': 0.5}, False),
    ({}, {'loss.target_weight': 1.0}, False),
    # Only a cosine depends on the number of steps.
    ({'solver.schedule': 'cosine'}, {'solver.schedule': 'cosine', 'training.steps': 9}, False),
    (
      {'solver.schedule': 'cosine', 'training.steps': 3},
      {
        'solver.schedule': 'cosine',
        'training.steps': 1,
        'training.restart_schedule': False,
        'selection.rounds': 3,
      },
      True,
    ),
  ],
)
def test_trainers_with_equal_solver_and_loss_share_a_step(factory, options, others, is_shared):
  make_trainer, _ = factory
  a, b = make_trainer('a', make_config(**options)), make_trainer('b', make_config(**others))
  assert (a.train_step is b.train_step) == is_shared
  assert a.evaluator.predict_step is b.evaluator.predict_step
  assert b.directory.name == 'b'
  assert b.options == TrainingOptions(**make_config(**others).training)


@pytest.mark.parametrize(
  ('steps', 'rounds', 'restart', 'expected'),
  [(10, 3, False, 30), (10, 1, True, 10), (10, 3, True, 10), (10, 1, False, 10)],
)
def test_schedule_is_as_long_as_a_round_where_each_restarts_it_else_as_all(
  steps, rounds, restart, expected
):
  options = make_config(**{'training.steps': steps, 'training.restart_schedule': restart}).training
  assert TrainingOptions(**options).schedule_steps(rounds) == expected


def test_accumulation_of_0_is_chosen_once_for_each_batch_size(tmp_path, monkeypatch):
  make_trainer, _ = make_factory(tmp_path, make_domains())
  automatic = {'training.accumulation': 0}
  assert make_trainer('a', make_config(**automatic)).options.accumulation == 1
  assert json.loads((tmp_path / 'accumulation.8.json').read_text())['accumulation'] == 1

  # Another start, on devices with less memory, goes on with the same number.
  monkeypatch.setattr('sjft_jax.training.accumulation.available_bytes', lambda: 1.0)
  make_trainer, _ = make_factory(tmp_path, make_domains())
  assert make_trainer('a', make_config(**automatic)).options.accumulation == 1
  with pytest.raises(ValueError, match=r'no training\.accumulation .* fit a device'):
    make_trainer('b', make_config(**automatic, **{'training.batch_size': 4}))
  artifacts.write_json(tmp_path / 'accumulation.4.json', {'accumulation': 1})
  trainer = make_trainer('b', make_config(**automatic, **{'training.batch_size': 4}))
  assert trainer.options.accumulation == 1
  assert make_trainer('b', make_config()).options.accumulation == 2


def test_class_cap_is_checked_once_the_micro_batches_are_chosen(tmp_path):
  make_trainer, _ = make_factory(tmp_path, make_domains())
  message = r'training\.class_cap=2 with 3 classes fills 6 of the 8 .*; raise it to 3, or'
  with pytest.raises(ValueError, match=message):
    make_trainer('a', make_config(**{'training.accumulation': 0, 'training.class_cap': 2}))
  make_trainer('a', make_config(**{'training.accumulation': 0, 'training.class_cap': 3}))


@pytest.mark.parametrize('order', [('none', 'rounds', 'constant'), ('rounds', 'constant', 'none')])
def test_accumulation_is_chosen_over_all_arms_in_whatever_order(tmp_path, monkeypatch, order):
  chosen_for = []

  def choose(path, trainings, batch, *, batch_size):
    chosen_for.append([id(train_step) for train_step, _ in trainings])
    artifacts.write_json(path, {'accumulation': 2})
    return 2

  monkeypatch.setattr('sjft_jax.training.trainer.load_or_choose_accumulation', choose)
  make_trainer, _ = make_factory(tmp_path, make_domains())
  c = make_config(**{'training.accumulation': 0})
  c.overrides.none.training = {'freeze': 'trunk'}
  arms = {arm: config.arm_config(c, arm) for arm in order}
  make_trainer.share_accumulation(arms.values())
  # The arms with equal solver and layers need equal memory, so one step stands for them.
  (steps,) = chosen_for
  assert len(set(steps)) == len(steps) == 2
  for arm, options in arms.items():
    assert make_trainer(f'arms/{arm}', options).options.accumulation == 2


@pytest.mark.parametrize('multi_label', [False, True])
def test_accumulation_is_chosen_for_the_shapes_of_the_largest_batch(
  tmp_path, monkeypatch, multi_label
):
  chosen_for = []

  def choose(path, trainings, batch, *, batch_size):
    ((_, state),) = trainings
    chosen_for.append((state, batch))
    return 1

  monkeypatch.setattr('sjft_jax.training.trainer.load_or_choose_accumulation', choose)
  make_trainer, variables = make_factory(tmp_path, make_domains(multi_label=multi_label))
  trainer = make_trainer('a', make_config(**{'training.accumulation': 0}))
  ((state, batch),) = chosen_for
  assert_equal(state.params, jax.eval_shape(lambda: variables['params']))
  for batches in (trainer.batches(SUBSET, 0), trainer.batches(None, 0, cls=SourceBatches)):
    assert jax.eval_shape(lambda leaves: leaves, batches(0)) == batch


def train(trainer, variables, *stops):
  """Train up to each of the steps; return the variables and the state on the host."""
  with trainer.open(variables) as run:
    for stop in stops:
      run.train(trainer.batches(SUBSET, 0), stop)
      assert run.progress.step == stop
      assert int(run.progress.state.step[0]) == stop
    return run.variables(), jax.device_get(run.progress.state)


def read_log(trainer):
  """Read the lines of the log, without the throughput."""
  lines = map(json.loads, (trainer.directory / 'log.jsonl').read_text().splitlines())
  return [
    {name: value for name, value in line.items() if not name.endswith('per_second')}
    for line in lines
  ]


def test_run_goes_on_from_its_newest_checkpoint(factory):
  make_trainer, variables = factory
  undisturbed, resumed = (make_trainer(name, make_config()) for name in ('undisturbed', 'resumed'))
  trained, state = train(undisturbed, variables, 4)
  assert trained['batch_stats'] == {'trunk': {'calls': 8}}  # Two micro-batches a step.
  train(resumed, variables, 1, 2)
  with resumed.open(variables) as run:
    assert run.progress.step == 2
    assert run.progress.seconds > 0
  resumed_variables, resumed_state = train(resumed, variables, 4)
  assert_equal(resumed_variables, trained)
  assert_equal(resumed_state, state)
  assert [line['step'] for line in read_log(undisturbed)] == [1, 2, 3, 4]
  assert read_log(resumed) == read_log(undisturbed)


def test_log_has_the_learning_rate_of_every_round(factory):
  make_trainer, variables = factory
  changes = {'training.steps': 2, 'solver.drop_every': 1, 'solver.drop_factor': 0.1}
  rates = {}
  for restart in (True, False):
    options = make_config(**changes, **{'training.restart_schedule': restart})
    trainer = make_trainer(f'rates {restart}', options)
    train(trainer, variables, 4)
    rates[restart] = [line['learning_rate'] for line in read_log(trainer)]
  assert rates[True] == pytest.approx([0.01, 0.001, 0.01, 0.001])
  assert rates[False] == pytest.approx([0.01, 0.001, 1e-4, 1e-5])


def test_save_variables_saves_the_average_of_the_parameters(factory, tmp_path):
  make_trainer, variables = factory
  trainer = make_trainer('average', make_config(**{'solver.ema': 0.5}))
  with trainer.open(variables) as run:
    run.train(trainer.batches(SUBSET, 0), 2)
    trained = run.variables()
    run.save_variables(epath.Path(tmp_path / 'network'))
    params = jax.tree.map(lambda x: np.asarray(x)[0], run.progress.state.params)
  assert not np.array_equal(trained['params']['target']['kernel'], params['target']['kernel'])
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(trained))
  with Checkpoints(tmp_path / 'network', 'a run') as checkpoints:
    assert checkpoints.steps() == [2]
    expected = trained, {'seconds': run.progress.seconds}
    assert_equal(checkpoints.load_newest(like=trained), expected)


def test_reset_optimizer_keeps_the_variables_and_the_step(factory):
  make_trainer, variables = factory
  trainer = make_trainer('reset', make_config())
  with trainer.open(variables) as run:
    run.train(trainer.batches(SUBSET, 0), 2)
    trained = run.variables()
    run.reset_optimizer()
    assert_equal(run.variables(), trained)
    assert run.progress.step == 2
    state = jax.device_get(run.progress.state)
  expected = trainer.optimizer.init(trained['params'])
  assert_equal(jax.tree.map(lambda x: x[0], state.opt_state), expected)


def test_too_large_loss_ends_the_run_and_names_its_images(factory):
  make_trainer, variables = factory
  trainer = make_trainer('too large', make_config(**{'training.max_loss': 1e-6}))
  with pytest.raises(FloatingPointError, match=r'source_loss is .* at step 1, above .*=1e-06'):
    train(trainer, variables, 2)
  names = (trainer.directory / 'bad_step.txt').read_text().splitlines()
  assert [name.split('/')[0] for name in names] == ['target', 'source'] * 8


@pytest.mark.parametrize(
  ('directory', 'option'),
  [
    ('arms/rounds', 'solver.learning_rate'),
    ('arms/none', 'overrides.none.solver.learning_rate'),
    ('pretrain', 'pretrain.learning_rate'),
  ],
)
def test_too_large_loss_names_the_learning_rate_that_the_training_has(factory, directory, option):
  make_trainer, variables = factory
  options = make_config()
  options.overrides.none.solver = {'learning_rate': 0.01}
  train(make_trainer(directory, options), variables, 1)
  options.training.max_loss = 1e-6
  with pytest.raises(FloatingPointError, match=f'; lower {re.escape(option)}$'):
    train(make_trainer(directory, options), variables, 2)


def test_too_large_loss_names_the_limit_that_the_arm_has(factory):
  make_trainer, variables = factory
  options = make_config(**{'training.max_loss': 1e-6})
  options.overrides.mine = {'training': {'max_loss': 1e-6}}
  limit = r'overrides\.mine\.training\.max_loss'
  with pytest.raises(FloatingPointError, match=f'above {limit}=1e-06, .*; raise {limit}$'):
    train(make_trainer('arms/mine', options), variables, 1)


def test_loss_of_a_multi_label_source_is_the_sum_of_its_classes(tmp_path):
  # At chance a source image costs log 2 for each of its five.
  message = (
    r'source_loss is .*, above training\.max_loss=0\.3 for each of 5 classes, .*; raise train'
  )
  make_trainer, variables = make_factory(tmp_path, make_domains(multi_label=True))
  trainers = {
    limit: make_trainer(f'max_loss {limit}', make_config(**{'training.max_loss': limit}))
    for limit in (2.5, 0.3)
  }
  train(trainers[2.5], variables, 1)
  (line,) = read_log(trainers[2.5])
  assert line['source_loss'] > 2.5
  with pytest.raises(FloatingPointError, match=message):
    train(trainers[0.3], variables, 1)


def test_pretraining_whose_last_update_overflows_is_an_error(factory):
  make_trainer, variables = factory
  options = {'training.steps': 1, 'solver.learning_rate': 1e38, 'solver.weight_decay': 1e3}
  with pytest.raises(
    FloatingPointError, match=r'not finite after the 1 steps .*; lower pretrain\.'
  ):
    pretrain_trunk(make_trainer('overflow/pretrain', make_config(**options)), variables, {})


def test_evaluator_predicts_every_image(factory):
  make_trainer, variables = factory
  trainer = make_trainer('predict', make_config())
  with trainer.open(variables) as run:
    p = trainer.evaluator(run.progress.state, trainer.domains.test, 'center')
  assert p.shape == (6, 3)
  np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
