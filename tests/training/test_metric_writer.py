import json
import math
import os
import resource
import subprocess
import sys
import time
import types
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sjft_jax.training import metric_writer
from sjft_jax.training.metric_writer import MetricWriter


class NoAppending(MemoryFileSystem):
  """An object store in memory: files are written whole or not at all."""

  protocol = 'az'
  store: ClassVar[dict] = {}
  pseudo_dirs: ClassVar[list] = ['']

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + path.removeprefix('az://').strip('/')

  def open(self, path, mode='rb', **options):
    assert 'a' not in mode
    return super().open(path, mode, **options)


fsspec.register_implementation('az', NoAppending, clobber=True)


@pytest.fixture
def store():
  NoAppending.store.clear()
  return epath.Path('az://bucket/arms/rounds')


@pytest.fixture(params=['disk', 'object store'])
def directory(request, tmp_path, store):
  return epath.Path(tmp_path) / 'arms' / 'rounds' if request.param == 'disk' else store


def opened(directory, step=0, *, tensorboard=False, wandb='', **options):
  return MetricWriter(
    directory, 'rounds', step, tensorboard=tensorboard, wandb=wandb, every=10, **options
  )


def train(journal, start, stop, checkpoint_every=20):
  """A training that logs every ten steps, and the hardness after each thirty."""
  for step in range(start, stop):
    if step % checkpoint_every == 0:
      journal.flush()
    if (step + 1) % 10 == 0:
      journal.log(step + 1, {'target_loss': 1 / (step + 1), 'images_per_second': step + 1})
    if (step + 1) % 30 == 0:
      journal.log(step + 1, {'hardness': np.linspace(0, 1, step + 1, dtype=np.float32)})


def killed(directory, start, stop, **options):
  """A directory as it is left by a process that is killed before step `stop`."""
  left = directory.with_name('killed')
  left.mkdir(parents=True, exist_ok=True)
  with opened(directory, **options) as j:
    train(j, start, stop)
    for path in directory.iterdir():
      (left / path.name).write_bytes(path.read_bytes())
  return left


def entries(directory):
  lines = (directory / 'log.jsonl').read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


def seen(directory):
  """What TensorBoard shows of a directory on the disk."""
  events = EventAccumulator(os.fspath(directory))
  events.Reload()
  return events


def curve(events, name):
  return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_each_kind_of_value_has_its_line(directory):
  with opened(directory) as j:
    j.log(10, {'target_loss': np.float32(0.5), 'source_images': np.int64(3)})
    j.log(
      20, {'hardness': np.array([0.0, 1.0, 5.0, np.nan]), 'neighbors': Image.new('RGB', (4, 3))}
    )
    j.log(30, {'target_loss': math.inf, 'hardness': np.zeros(0)})
  assert entries(directory) == [
    {'step': 10, 'target_loss': 0.5, 'source_images': 3},
    {
      'step': 20,
      'hardness': {'count': 3, 'min': 0.0, 'mean': 2.0, 'max': 5.0},
      'neighbors': [4, 3],
    },
    {'step': 30, 'target_loss': None, 'hardness': {'count': 0}},
  ]


@pytest.mark.parametrize('killed_at', [1, 19, 25, 30, 35, 59])
def test_after_a_kill_the_lines_are_those_of_an_undisturbed_training(directory, killed_at):
  left = killed(directory, 0, killed_at)
  with opened(directory) as j:
    train(j, 0, 60)
  checkpoint = killed_at // 20 * 20
  with opened(left, checkpoint) as j:
    # What is known of the finished parts is logged at each start.
    if checkpoint > 30:
      j.log(30, {'hardness': np.linspace(0, 1, 30)})
    train(j, checkpoint, 60)
  lines = (left / 'log.jsonl').read_text()
  assert lines == (directory / 'log.jsonl').read_text()
  assert lines.count('\n') == 8


def test_what_stands_at_the_step_itself_is_not_logged_twice_but_what_is_new_is(directory):
  with opened(directory) as j:
    j.log(30, {'target_loss': 1.0})
    j.log(40, {'target_loss': 0.5})
  with opened(directory, 30) as j:
    j.log(30, {'target_loss': 1.0})
    j.log(30, {'target_loss': 1.0, 'hardness': np.ones(2)})
  assert [sorted(entry) for entry in entries(directory)] == [
    ['step', 'target_loss'],
    ['hardness', 'step'],
  ]


@settings(max_examples=40)
@given(cut=st.integers(0, 200), step=st.integers(0, 60), noise=st.binary(max_size=20))
def test_a_torn_end_goes_and_whole_lines_up_to_the_step_stay(tmp_path_factory, cut, step, noise):
  directory = epath.Path(tmp_path_factory.mktemp('torn'))
  with opened(directory) as j:
    train(j, 0, 60)
  whole = entries(directory)
  content = (directory / 'log.jsonl').read_bytes()[:cut]
  (directory / 'log.jsonl').write_bytes(content + b'\x00' + noise)
  with opened(directory, step):
    pass
  left = entries(directory)
  assert left == [entry for entry in whole if entry['step'] <= step][: content.count(b'\n')]


def test_lines_can_be_read_while_the_training_goes_on(tmp_path):
  with opened(tmp_path) as j:
    j.log(10, {'target_loss': 1.0})
    assert entries(tmp_path) == [{'step': 10, 'target_loss': 1.0}]


def test_in_an_object_store_lines_are_there_from_the_next_checkpoint_on(store):
  with opened(store) as j:
    j.log(10, {'target_loss': 1.0})
    assert not (store / 'log.jsonl').exists()
    j.flush()
    assert len(entries(store)) == 1
    j.log(20, {'target_loss': 1.0})
  assert len(entries(store)) == 2


def test_other_processes_write_nothing(tmp_path):
  with opened(tmp_path / 'arm', writes=False, tensorboard=True, wandb='project') as j:
    j.log(10, {'target_loss': 1.0})
    j.flush()
  assert j.every == 10
  assert not (tmp_path / 'arm').exists()


def test_a_disk_that_fills_up_is_an_error_and_the_next_start_goes_on(tmp_path):
  with opened(tmp_path / 'undisturbed') as j:
    train(j, 0, 200)

  def fill():
    with opened(tmp_path / 'full', tensorboard=True) as j:
      resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
      train(j, 0, 200)

  unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with pytest.raises(OSError, match='too large'):
      fill()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
  assert 0 < (tmp_path / 'full' / 'log.jsonl').stat().st_size <= 1000
  with opened(tmp_path / 'full', 10, tensorboard=True) as j:
    train(j, 10, 200)
  assert entries(tmp_path / 'full') == entries(tmp_path / 'undisturbed')


def test_tensorboard_shows_curves_pictures_and_histograms(tmp_path):
  picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
  values = np.array([0.0, 0.5, 0.5, 2.0])
  with opened(tmp_path, tensorboard=True) as j:
    j.log(10, {'target_loss': 0.5, 'source_loss': math.nan})
    j.log(20, {'target_loss': 0.25, 'hardness': values, 'neighbors': picture})
    j.log(30, {'num_neighbors': np.full(7, 100), 'hardness': np.array([np.nan])})
  events = seen(tmp_path)
  assert curve(events, 'target_loss') == [(10, 0.5), (20, 0.25)]
  assert math.isnan(events.Scalars('source_loss')[0].value)
  (image,) = events.Images('neighbors')
  (tmp_path / 'shown.png').write_bytes(image.encoded_image_string)
  assert np.array_equal(Image.open(tmp_path / 'shown.png'), picture)
  assert (image.step, image.width, image.height) == (20, 4, 3)
  (histogram,) = events.Histograms('hardness')
  shown = histogram.histogram_value
  assert (shown.min, shown.max, shown.num, shown.sum) == (0.0, 2.0, 4, 3.0)
  limits, counts = np.array(shown.bucket_limit), np.array(shown.bucket)
  for value in (0.0, 0.5, 2.0):
    assert counts[np.searchsorted(limits, value, side='right' if value < 2 else 'left')] > 0
  assert events.Histograms('num_neighbors')[0].histogram_value.num == 7


def test_tensorboard_hides_what_came_after_the_checkpoint(tmp_path):
  left = killed(tmp_path / 'arm', 0, 50, tensorboard=True)
  with opened(left, 20, tensorboard=True) as j:
    j.log(30, {'target_loss': 7.0})
    j.log(40, {'target_loss': 8.0})
  events = seen(left)
  assert curve(events, 'target_loss') == [(10, 0.1), (20, 0.05), (30, 7.0), (40, 8.0)]
  assert not events.Histograms('hardness')


@settings(max_examples=30)
@given(share=st.floats(0, 1))
def test_event_files_cut_anywhere_can_be_read(tmp_path_factory, share):
  directory = epath.Path(tmp_path_factory.mktemp('cut'))
  with opened(directory, tensorboard=True) as j:
    j.log(10, {'target_loss': 10})
    j.log(20, {'target_loss': 20, 'sheet': Image.effect_noise((20, 20), 50)})
  (file,) = directory.glob('events.*')
  file.write_bytes(file.read_bytes()[: int(share * file.stat().length)])
  with opened(directory, 15, tensorboard=True) as j:
    j.log(20, {'target_loss': 21})
  assert curve(seen(directory), 'target_loss')[-1] == (20, 21)
  assert curve(seen(directory), 'target_loss')[:-1] in ([], [(10, 10)])


def test_starts_in_the_same_second_do_not_overwrite_each_other(tmp_path):
  for step in (0, 10, 20):
    with opened(tmp_path, step, tensorboard=True) as j:
      j.log(step + 10, {'target_loss': step})
  assert curve(seen(tmp_path), 'target_loss') == [(10, 0), (20, 10), (30, 20)]


def test_tensorboard_files_in_an_object_store(tmp_path, store):
  with opened(store, tensorboard=True) as j:
    j.log(10, {'target_loss': 0.5})
  (file,) = store.glob('events.*')
  (tmp_path / file.name).write_bytes(file.read_bytes())
  assert curve(seen(tmp_path), 'target_loss') == [(10, 0.5)]


def test_without_tensorboard_installed_the_rest_goes_on(tmp_path, monkeypatch):
  find = metric_writer.importlib.util.find_spec
  monkeypatch.setattr(
    metric_writer.importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorboardX' else find(name),
  )
  with opened(tmp_path, tensorboard=True) as j:
    j.log(10, {'target_loss': 1.0})
  assert [path.name for path in tmp_path.iterdir()] == ['log.jsonl']


def test_nothing_is_imported_that_is_not_used(tmp_path):
  code = f"""
import sys
from sjft_jax.training.metric_writer import MetricWriter
with MetricWriter({str(tmp_path)!r}, '', tensorboard=False, wandb='', every=1) as journal:
  journal.log(1, {{'target_loss': 1.0}})
assert not {{'tensorboardX', 'wandb', 'torch'}} & set(sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.slow
def test_a_killed_process_leaves_files_that_can_be_read(tmp_path):
  code = """
import itertools, sys
import numpy as np
from PIL import Image
from sjft_jax.training.metric_writer import MetricWriter
sheet = Image.effect_noise((200, 200), 50)
with MetricWriter(sys.argv[1], '', tensorboard=True, wandb='', every=1) as journal:
  for step in itertools.count(1):
    journal.log(step, {'target_loss': 1 / step, 'hardness': np.arange(step), 'sheet': sheet})
    if step == 5:
      print('going', flush=True)
"""
  command = [sys.executable, '-c', code, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    process.kill()
  last = entries(tmp_path)[-1]['step']
  shown = seen(tmp_path)
  assert [event.step for event in shown.Scalars('target_loss')][:last] == [*range(1, last + 1)]
  with opened(tmp_path, 3, tensorboard=True) as j:
    j.log(4, {'target_loss': -1.0})
  assert curve(seen(tmp_path), 'target_loss')[2:] == [(3, 1 / 3), (4, -1.0)]
  assert [entry['step'] for entry in entries(tmp_path)] == [1, 2, 3, 4]


class FakeWandB(types.ModuleType):
  """The parts of wandb that are used; what a run is told lasts from one `init` to the next."""

  def __init__(self):
    super().__init__('wandb')
    self.errors = types.SimpleNamespace(
      UsageError=type('UsageError', (Exception,), {}), CommError=type('CommError', (Exception,), {})
    )
    self.fails = None
    self.history: dict = {}
    self.inits: list = []
    self.exit_codes: list = []
    self.Settings = types.SimpleNamespace
    self.Image = lambda image: ('image', image.size)
    self.Histogram = lambda np_histogram: ('histogram', np_histogram[0].sum())

  def login(self):
    if self.fails:
      raise self.fails

  def init(self, **options):
    self.inits.append(options)
    if self.fails and options.get('mode') != 'offline':
      raise self.fails
    history = self.history.setdefault(options['id'], {})

    def log(values, step):
      assert step >= max(history, default=0), 'wandb warns'
      history.setdefault(step, {}).update(values)

    return types.SimpleNamespace(
      step=max(history, default=-1) + 1,
      log=log,
      finish=lambda exit_code: self.exit_codes.append(exit_code),
    )


@pytest.fixture
def fake(monkeypatch):
  module = FakeWandB()
  module.__spec__ = types.SimpleNamespace(name='wandb')
  monkeypatch.setitem(sys.modules, 'wandb', module)
  monkeypatch.delenv('WANDB_MODE', raising=False)
  return module


def test_a_resumed_training_goes_on_with_its_run_and_is_not_told_twice(directory, fake):
  def preempted():
    with opened(directory, wandb='project', config={'a': 1}) as j:
      j.log(10, {'target_loss': 1.0})
      j.log(20, {'target_loss': 0.5, 'sheet': Image.new('RGB', (4, 3)), 'hardness': np.ones(3)})
      raise ConnectionError('preempted')

  with pytest.raises(ConnectionError):
    preempted()
  with opened(directory, 10, wandb='project', config={'a': 1}) as j:
    j.log(20, {'target_loss': 0.5})
    j.log(30, {'target_loss': 0.25})
  (history,) = fake.history.values()
  assert history == {
    10: {'target_loss': 1.0},
    20: {'target_loss': 0.5, 'sheet': ('image', (4, 3)), 'hardness': ('histogram', 3)},
    30: {'target_loss': 0.25},
  }
  assert fake.exit_codes == [1, 0]
  assert fake.inits[0] == fake.inits[1]
  assert fake.inits[0]['project'] == 'project'
  assert fake.inits[0]['name'] == 'rounds'
  assert fake.inits[0]['config'] == {'a': 1}
  in_store = 'az:' in os.fspath(directory)
  assert fake.inits[0]['dir'] == (None if in_store else os.fspath(directory))


def test_another_training_is_another_run(tmp_path, fake):
  for name in ('none', 'rounds'):
    with opened(tmp_path / name, wandb='project'):
      pass
  assert len(fake.history) == 2


def test_a_lost_network_keeps_the_run_on_the_disk(tmp_path, fake, capsys):
  fake.fails = fake.errors.CommError('timed out')
  metric_writer.check('project')
  with opened(tmp_path, wandb='project') as j:
    j.log(10, {'target_loss': 1.0})
  assert fake.inits[-1]['mode'] == 'offline'
  assert 'timed out' in capsys.readouterr().out
  assert [*fake.history.values()] == [{10: {'target_loss': 1.0}}]


def test_nobody_logged_in_is_said_before_any_work(tmp_path, fake, monkeypatch):
  fake.fails = fake.errors.UsageError('No API key configured.')
  remedy = r"logging\.wandb='project': No API key configured\. \(WANDB_MODE=offline keeps"
  with pytest.raises(ValueError, match=remedy):
    metric_writer.check('project')
  with pytest.raises(ValueError, match=remedy):
    opened(tmp_path, wandb='project')
  metric_writer.check('')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  metric_writer.check('project')


def test_a_missing_package_is_said_with_the_extra_to_install(monkeypatch):
  monkeypatch.setattr(metric_writer.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"logging\.wandb='mine' .* pip install 'sjft_jax\[wandb\]'"):
    metric_writer.check('mine')
  metric_writer.check('')


@pytest.mark.reference
def test_weights_and_biases_itself_offline(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  metric_writer.check('project')
  for step in (0, 20):
    with opened(tmp_path, step, wandb='project', config={'seed': 0}) as j:
      j.log(step + 10, {'target_loss': 1.0, 'hardness': np.linspace(0, 1, 9)})
      j.log(step + 20, {'sheet': Image.new('RGB', (4, 3)), 'num_neighbors': np.full(3, 100)})
  # One file for each start, unless both were in one second; its process writes a moment later.
  run = (tmp_path / 'wandb_id').read_text()
  for _ in range(100):
    files = [*tmp_path.glob(f'wandb/offline-run-*/run-{run}.wandb')]
    if all(b'num_neighbors' in file.read_bytes() for file in files):
      break
    time.sleep(0.1)
  else:
    pytest.fail('a run was not kept')
  assert len(files) in (1, 2)
  assert [*tmp_path.glob('wandb/offline-run-*/files/media/images/sheet_*.png')]
