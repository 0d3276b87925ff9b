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
from sjft_jax.training.metric_writer import LoggingOptions, MetricWriter


class ObjectStore(MemoryFileSystem):
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


fsspec.register_implementation('az', ObjectStore, clobber=True)


@pytest.fixture
def store():
  ObjectStore.store.clear()
  return epath.Path('az://bucket/arms/rounds')


@pytest.fixture(params=['disk', 'object store'])
def directory(request, tmp_path, store):
  return epath.Path(tmp_path) / 'arms' / 'rounds' if request.param == 'disk' else store


def open_writer(directory, step=0, *, tensorboard=False, wandb='', **arguments):
  options = LoggingOptions(every=10, tensorboard=tensorboard, wandb=wandb)
  return MetricWriter(directory, name='rounds', step=step, options=options, **arguments)


def train(writer, start, stop, checkpoint_every=20):
  """Log as a training does: every ten steps, and the hardness every thirty."""
  for step in range(start, stop):
    if step % checkpoint_every == 0:
      writer.flush()
    if (step + 1) % 10 == 0:
      writer.log(step + 1, {'target_loss': 1 / (step + 1), 'images_per_second': step + 1})
    if (step + 1) % 30 == 0:
      writer.log(step + 1, {'hardness': np.linspace(0, 1, step + 1, dtype=np.float32)})


def train_until_killed(directory, start, stop, **options):
  """Return a directory as a process leaves it that is killed before step `stop`."""
  copy = directory.with_name('killed')
  copy.mkdir(parents=True, exist_ok=True)
  with open_writer(directory, **options) as writer:
    train(writer, start, stop)
    for path in directory.iterdir():
      (copy / path.name).write_bytes(path.read_bytes())
  return copy


def read_lines(directory):
  lines = (directory / 'log.jsonl').read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


def read_events(directory):
  """Read what TensorBoard shows of a directory on the disk."""
  events = EventAccumulator(os.fspath(directory))
  events.Reload()
  return events


def curve(events, name):
  return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_log_writes_a_line_for_numbers_arrays_and_images(directory):
  with open_writer(directory) as writer:
    writer.log(10, {'target_loss': np.float32(0.5), 'source_images': np.int64(3)})
    writer.log(
      20, {'hardness': np.array([0.0, 1.0, 5.0, np.nan]), 'neighbors': Image.new('RGB', (4, 3))}
    )
    writer.log(30, {'target_loss': math.inf, 'hardness': np.zeros(0)})
  assert read_lines(directory) == [
    {'step': 10, 'target_loss': 0.5, 'source_images': 3},
    {
      'step': 20,
      'hardness': {'count': 3, 'min': 0.0, 'mean': 2.0, 'max': 5.0},
      'neighbors': [4, 3],
    },
    {'step': 30, 'target_loss': None, 'hardness': {'count': 0}},
  ]


@pytest.mark.parametrize('killed_at', [1, 19, 25, 30, 35, 59])
def test_lines_after_a_kill_are_those_of_an_undisturbed_training(directory, killed_at):
  resumed = train_until_killed(directory, 0, killed_at)
  with open_writer(directory) as writer:
    train(writer, 0, 60)
  checkpoint = killed_at // 20 * 20
  with open_writer(resumed, checkpoint) as writer:
    # The scores of finished rounds are logged at each start.
    if checkpoint > 30:
      writer.log(30, {'hardness': np.linspace(0, 1, 30)})
    train(writer, checkpoint, 60)
  lines = (resumed / 'log.jsonl').read_text()
  assert lines == (directory / 'log.jsonl').read_text()
  assert lines.count('\n') == 8


def test_only_new_values_are_logged_at_the_step_of_the_checkpoint(directory):
  with open_writer(directory) as writer:
    writer.log(30, {'target_loss': 1.0})
    writer.log(40, {'target_loss': 0.5})
  with open_writer(directory, 30) as writer:
    writer.log(30, {'target_loss': 1.0})
    writer.log(30, {'target_loss': 1.0, 'hardness': np.ones(2)})
  assert [sorted(entry) for entry in read_lines(directory)] == [
    ['step', 'target_loss'],
    ['hardness', 'step'],
  ]


@settings(max_examples=40)
@given(cut=st.integers(0, 200), step=st.integers(0, 60), noise=st.binary(max_size=20))
def test_incomplete_end_is_cut_off_and_complete_lines_up_to_the_step_stay(
  tmp_path_factory, cut, step, noise
):
  directory = epath.Path(tmp_path_factory.mktemp('cut'))
  with open_writer(directory) as writer:
    train(writer, 0, 60)
  complete = read_lines(directory)
  content = (directory / 'log.jsonl').read_bytes()[:cut]
  (directory / 'log.jsonl').write_bytes(content + b'\x00' + noise)
  with open_writer(directory, step):
    pass
  expected = [line for line in complete if line['step'] <= step][: content.count(b'\n')]
  assert read_lines(directory) == expected


def test_lines_on_a_disk_can_be_read_at_once(tmp_path):
  with open_writer(tmp_path) as writer:
    writer.log(10, {'target_loss': 1.0})
    assert read_lines(tmp_path) == [{'step': 10, 'target_loss': 1.0}]


def test_lines_in_an_object_store_can_be_read_after_the_next_flush(store):
  with open_writer(store) as writer:
    writer.log(10, {'target_loss': 1.0})
    assert not (store / 'log.jsonl').exists()
    writer.flush()
    assert len(read_lines(store)) == 1
    writer.log(20, {'target_loss': 1.0})
  assert len(read_lines(store)) == 2


def test_writer_of_another_process_writes_nothing(tmp_path):
  with open_writer(tmp_path / 'arm', is_writing=False, tensorboard=True, wandb='project') as writer:
    writer.log(10, {'target_loss': 1.0})
    writer.flush()
  assert writer.every == 10
  assert not (tmp_path / 'arm').exists()


def test_full_disk_is_an_error_and_the_next_start_goes_on(tmp_path):
  with open_writer(tmp_path / 'undisturbed') as writer:
    train(writer, 0, 200)

  def fill_disk():
    with open_writer(tmp_path / 'full', tensorboard=True) as writer:
      resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
      train(writer, 0, 200)

  unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with pytest.raises(OSError, match='too large'):
      fill_disk()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
  assert 0 < (tmp_path / 'full' / 'log.jsonl').stat().st_size <= 1000
  with open_writer(tmp_path / 'full', 10, tensorboard=True) as writer:
    train(writer, 10, 200)
  assert read_lines(tmp_path / 'full') == read_lines(tmp_path / 'undisturbed')


def test_tensorboard_shows_curves_images_and_histograms(tmp_path):
  image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
  values = np.array([0.0, 0.5, 0.5, 2.0])
  with open_writer(tmp_path, tensorboard=True) as writer:
    writer.log(10, {'target_loss': 0.5, 'source_loss': math.nan})
    writer.log(20, {'target_loss': 0.25, 'hardness': values, 'neighbors': image})
    writer.log(30, {'num_neighbors': np.full(7, 100), 'hardness': np.array([np.nan])})
  events = read_events(tmp_path)
  assert curve(events, 'target_loss') == [(10, 0.5), (20, 0.25)]
  assert math.isnan(events.Scalars('source_loss')[0].value)
  (event,) = events.Images('neighbors')
  (tmp_path / 'event.png').write_bytes(event.encoded_image_string)
  assert np.array_equal(Image.open(tmp_path / 'event.png'), image)
  assert (event.step, event.width, event.height) == (20, 4, 3)
  (event,) = events.Histograms('hardness')
  histogram = event.histogram_value
  assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (0.0, 2.0, 4, 3.0)
  limits, counts = np.array(histogram.bucket_limit), np.array(histogram.bucket)
  for value in (0.0, 0.5, 2.0):
    assert counts[np.searchsorted(limits, value, side='right' if value < 2 else 'left')] > 0
  assert events.Histograms('num_neighbors')[0].histogram_value.num == 7


def test_tensorboard_hides_events_after_the_checkpoint(tmp_path):
  resumed = train_until_killed(tmp_path / 'arm', 0, 50, tensorboard=True)
  with open_writer(resumed, 20, tensorboard=True) as writer:
    writer.log(30, {'target_loss': 7.0})
    writer.log(40, {'target_loss': 8.0})
  events = read_events(resumed)
  assert curve(events, 'target_loss') == [(10, 0.1), (20, 0.05), (30, 7.0), (40, 8.0)]
  assert not events.Histograms('hardness')


@settings(max_examples=30)
@given(share=st.floats(0, 1))
def test_event_file_that_is_cut_anywhere_can_be_read(tmp_path_factory, share):
  directory = epath.Path(tmp_path_factory.mktemp('cut'))
  with open_writer(directory, tensorboard=True) as writer:
    writer.log(10, {'target_loss': 10})
    writer.log(20, {'target_loss': 20, 'neighbors': Image.effect_noise((20, 20), 50)})
  (file,) = directory.glob('events.*')
  file.write_bytes(file.read_bytes()[: int(share * file.stat().length)])
  with open_writer(directory, 15, tensorboard=True) as writer:
    writer.log(20, {'target_loss': 21})
  assert curve(read_events(directory), 'target_loss')[-1] == (20, 21)
  assert curve(read_events(directory), 'target_loss')[:-1] in ([], [(10, 10)])


def test_starts_in_the_same_second_write_separate_files(tmp_path):
  for step in (0, 10, 20):
    with open_writer(tmp_path, step, tensorboard=True) as writer:
      writer.log(step + 10, {'target_loss': step})
  assert curve(read_events(tmp_path), 'target_loss') == [(10, 0), (20, 10), (30, 20)]


def test_event_file_is_written_to_an_object_store(tmp_path, store):
  with open_writer(store, tensorboard=True) as writer:
    writer.log(10, {'target_loss': 0.5})
  (file,) = store.glob('events.*')
  (tmp_path / file.name).write_bytes(file.read_bytes())
  assert curve(read_events(tmp_path), 'target_loss') == [(10, 0.5)]


def test_missing_tensorboard_does_not_keep_lines_from_being_written(tmp_path, monkeypatch):
  find_spec = metric_writer.importlib.util.find_spec
  monkeypatch.setattr(
    metric_writer.importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorboardX' else find_spec(name),
  )
  with open_writer(tmp_path, tensorboard=True) as writer:
    writer.log(10, {'target_loss': 1.0})
  assert [path.name for path in tmp_path.iterdir()] == ['log.jsonl']


def test_packages_that_are_not_used_are_not_imported(tmp_path):
  code = f"""
import sys
from sjft_jax.training.metric_writer import LoggingOptions, MetricWriter
options = LoggingOptions(every=1, tensorboard=False, wandb='')
with MetricWriter({str(tmp_path)!r}, name='', step=0, options=options) as writer:
  writer.log(1, {{'target_loss': 1.0}})
assert not {{'tensorboardX', 'wandb', 'torch'}} & set(sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.slow
def test_files_of_a_killed_process_can_be_read(tmp_path):
  code = """
import itertools, sys
import numpy as np
from PIL import Image
from sjft_jax.training.metric_writer import LoggingOptions, MetricWriter
image = Image.effect_noise((200, 200), 50)
options = LoggingOptions(every=1, tensorboard=True, wandb='')
with MetricWriter(sys.argv[1], name='', step=0, options=options) as writer:
  for step in itertools.count(1):
    writer.log(step, {'target_loss': 1 / step, 'hardness': np.arange(step), 'neighbors': image})
    if step == 5:
      print('ready', flush=True)
"""
  command = [sys.executable, '-c', code, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    process.kill()
  last_step = read_lines(tmp_path)[-1]['step']
  steps = [event.step for event in read_events(tmp_path).Scalars('target_loss')]
  assert steps[:last_step] == [*range(1, last_step + 1)]
  with open_writer(tmp_path, 3, tensorboard=True) as writer:
    writer.log(4, {'target_loss': -1.0})
  assert curve(read_events(tmp_path), 'target_loss')[2:] == [(3, 1 / 3), (4, -1.0)]
  assert [line['step'] for line in read_lines(tmp_path)] == [1, 2, 3, 4]


class FakeWandB(types.ModuleType):
  """The parts of wandb that are used; the history of a run lasts from one `init` to the next."""

  def __init__(self):
    super().__init__('wandb')
    self.errors = types.SimpleNamespace(
      UsageError=type('UsageError', (Exception,), {}), CommError=type('CommError', (Exception,), {})
    )
    self.error = None
    self.history: dict = {}
    self.inits: list = []
    self.exit_codes: list = []
    self.Settings = types.SimpleNamespace
    self.Image = lambda image: ('image', image.size)
    self.Histogram = lambda np_histogram: ('histogram', np_histogram[0].sum())

  def login(self):
    if self.error:
      raise self.error

  def init(self, **options):
    self.inits.append(options)
    if self.error and options.get('mode') != 'offline':
      raise self.error
    history = self.history.setdefault(options['id'], {})

    def log(values, step):
      assert step >= max(history, default=0), 'wandb would warn'
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


def test_resumed_training_continues_its_wandb_run_without_repeating_values(directory, fake):
  def train_until_preempted():
    with open_writer(directory, wandb='project', config={'a': 1}) as writer:
      writer.log(10, {'target_loss': 1.0})
      writer.log(
        20, {'target_loss': 0.5, 'neighbors': Image.new('RGB', (4, 3)), 'hardness': np.ones(3)}
      )
      raise ConnectionError('preempted')

  with pytest.raises(ConnectionError):
    train_until_preempted()
  with open_writer(directory, 10, wandb='project', config={'a': 1}) as writer:
    writer.log(20, {'target_loss': 0.5})
    writer.log(30, {'target_loss': 0.25})
  (history,) = fake.history.values()
  assert history == {
    10: {'target_loss': 1.0},
    20: {'target_loss': 0.5, 'neighbors': ('image', (4, 3)), 'hardness': ('histogram', 3)},
    30: {'target_loss': 0.25},
  }
  assert fake.exit_codes == [1, 0]
  assert fake.inits[0] == fake.inits[1]
  assert fake.inits[0]['project'] == 'project'
  assert fake.inits[0]['name'] == 'rounds'
  assert fake.inits[0]['config'] == {'a': 1}
  is_in_store = 'az:' in os.fspath(directory)
  assert fake.inits[0]['dir'] == (None if is_in_store else os.fspath(directory))


def test_another_training_is_another_wandb_run(tmp_path, fake):
  for name in ('none', 'rounds'):
    with open_writer(tmp_path / name, wandb='project'):
      pass
  assert len(fake.history) == 2


def test_wandb_run_is_kept_on_the_disk_without_a_network(tmp_path, fake, capsys):
  fake.error = fake.errors.CommError('timed out')
  metric_writer.check_wandb('project')
  with open_writer(tmp_path, wandb='project') as writer:
    writer.log(10, {'target_loss': 1.0})
  assert fake.inits[-1]['mode'] == 'offline'
  assert 'timed out' in capsys.readouterr().out
  assert [*fake.history.values()] == [{10: {'target_loss': 1.0}}]


def test_missing_wandb_login_is_an_error_before_any_work(tmp_path, fake, monkeypatch):
  fake.error = fake.errors.UsageError('No API key configured.')
  message = r"logging\.wandb='project': No API key configured\. \(WANDB_MODE=offline keeps"
  with pytest.raises(ValueError, match=message):
    metric_writer.check_wandb('project')
  with pytest.raises(ValueError, match=message):
    open_writer(tmp_path, wandb='project')
  metric_writer.check_wandb('')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  metric_writer.check_wandb('project')


def test_missing_wandb_is_an_error_that_names_the_extra_to_install(monkeypatch):
  monkeypatch.setattr(metric_writer.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"logging\.wandb='mine' .* pip install 'sjft_jax\[wandb\]'"):
    metric_writer.check_wandb('mine')
  metric_writer.check_wandb('')


@pytest.mark.reference
def test_wandb_itself_keeps_runs_offline(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  metric_writer.check_wandb('project')
  for step in (0, 20):
    with open_writer(tmp_path, step, wandb='project', config={'seed': 0}) as writer:
      writer.log(step + 10, {'target_loss': 1.0, 'hardness': np.linspace(0, 1, 9)})
      writer.log(
        step + 20, {'neighbors': Image.new('RGB', (4, 3)), 'num_neighbors': np.full(3, 100)}
      )
  # One file for each start, unless both were in one second; wandb's process writes a moment later.
  run_id = (tmp_path / 'wandb_id').read_text()
  for _ in range(100):
    files = [*tmp_path.glob(f'wandb/offline-run-*/run-{run_id}.wandb')]
    if all(b'num_neighbors' in file.read_bytes() for file in files):
      break
    time.sleep(0.1)
  else:
    pytest.fail('the files do not hold all values')
  assert len(files) in (1, 2)
  assert [*tmp_path.glob('wandb/offline-run-*/files/media/images/neighbors_*.png')]


@pytest.mark.parametrize('damage', [b'', b'[]', b'5', b'[' * 100_000, b'\xff\x00', b'{"loss": 1}'])
def test_damaged_line_drops_only_that_line_and_says_so(directory, capsys, damage):
  with open_writer(directory) as writer:
    train(writer, 0, 60)
  path = directory / 'log.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join([*lines[:2], damage + b'\n', *lines[3:]]))
  with open_writer(directory, 60):
    pass
  assert path.read_bytes() == b''.join(lines[:2] + lines[3:])
  assert '1, which are dropped' in ' '.join(capsys.readouterr().out.split())
