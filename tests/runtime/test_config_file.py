"""The flag --config: what is wrong with a configuration is one line; what people write works."""

import os
import subprocess
import sys

import commands
import pytest

from sjft_jax import config
from sjft_jax.runtime import config_file

FILES = {
  'no_function.py': 'x = 1\n',
  'dict.py': 'def get_config():\n  return {"seed": 1}\n',
  'environment.py': 'import os\n\n\ndef get_config():\n  return os.environ["NOT_SET_ANYWHERE"]\n',
  'syntax.py': 'def get_config(:\n',
  'binary.py': '\0',
  'exit.py': 'import sys\n\nsys.exit(3)\n',
  'settings.json': '{"seed": 1}\n',
  'mine.py': 'from sjft_jax import config\n\n\ndef get_config():\n  return config.default()\n',
}
OVERRIDE = '--config.training.steps=3'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('configs of mine')
  for name, content in FILES.items():
    (path / name).write_text(content)
  return path


def main(*options, cwd=commands.ROOT, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'sjft_jax.main', *options],
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': str(commands.ROOT)} | environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def error_line(process):
  assert process.returncode == 1, process.stderr
  assert process.stderr.startswith('error: ')
  assert process.stderr.count('\n') == 1, process.stderr
  return process.stderr


@pytest.mark.parametrize('more', [(), (OVERRIDE,)])
@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('no_function.py', r'the file defines no function get_config'),
    ('dict.py', 'get_config() returned dict; return a ConfigDict'),
    ('environment.py', "line 5: KeyError: 'NOT_SET_ANYWHERE'"),
    ('syntax.py', 'line 1: invalid syntax'),
    ('binary.py', 'binary.py: source code'),
    ('exit.py', 'line 3: SystemExit: 3'),
    ('settings.json', 'give a Python file that defines get_config()'),
    ('missing.py', 'no such file'),
    ('', 'give a Python file'),
  ],
)
def test_a_configuration_that_cannot_be_loaded_is_one_line(folder, name, message, more):
  assert message in error_line(main(f'--config={folder / name}', *more))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--config=configs/demmo.py', OVERRIDE], 'did you mean configs/demo.py?'),
    (['--config=configs/indoor.py:moon', OVERRIDE], 'use one of :imagenet :places :hybrid'),
    (['--config='], 'give a Python file'),
    ([OVERRIDE], "Unknown command line flag 'config.training.steps'"),
    (['--config=configs/demo.py', '--config.trainig.steps=3'], 'unknown option'),
    (['--config=configs/demo.py', '--config.training.steps=many'], 'many'),
    (['--config=configs/demo.py', '--config.overrides.all.solver.rate=1'], 'no such option'),
    (['--config=configs/demo.py', '--config.overrides.many.solver.ema=0.1'], "'many'"),
    (['--config=configs/demo.py', 'steps=3'], "unexpected 'steps=3'"),
  ],
)
def test_a_wrong_option_is_one_line(options, message):
  assert message in error_line(main(*options))


@pytest.mark.slow
@pytest.mark.parametrize(
  'value', ['configs/folder.py', 'folder.py', '~/mine.py', 'mine.py', './mine.py']
)
def test_configurations_are_found_from_any_folder(folder, value):
  process = main(f'--config={value}', '--config.arms=none,rounds', cwd=folder, HOME=str(folder))
  # Found and loaded: it is the data that is missing.
  assert "config.target: path=''" in error_line(process)


@pytest.mark.slow
def test_overrides_of_an_arm_that_is_not_trained_are_checked():
  process = main('--config=configs/demo.py', '--config.overrides.all.bank.name=gabor')
  assert 'overrides.all.bank: arms can differ in selection' in error_line(process)


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    ('--config.arms=none,rounds', "--config.arms=('none', 'rounds')"),
    ('--config.arms=none', "--config.arms=('none',)"),
    ('--config.arms=', '--config.arms=()'),
    ('--config.bank.layer_weights=1,0.5', '--config.bank.layer_weights=(1, 0.5)'),
    ("--config.arms=('none',)", "--config.arms=('none',)"),
    ('--config.target.path=a,b', '--config.target.path=a,b'),
    ('--workdir=a,b', '--workdir=a,b'),
  ],
)
def test_comma_lists_are_tuples_where_the_option_is_one(argument, expected):
  argv = ['main', argument]
  config_file._rewrite_tuples(config.default(), argv)
  assert argv == ['main', expected]


def test_a_tuple_may_be_the_next_argument():
  argv = ['main', '--config.arms', 'all', '--config.arms', 'none,rounds', '--config.seed', '1']
  config_file._rewrite_tuples(config.default(), argv)
  assert argv == ['main', "--config.arms=('none', 'rounds')", '--config.seed', '1']
  for rest in ([], ['--config.seed=1']):
    argv = ['main', '--config.arms', *rest]
    config_file._rewrite_tuples(config.default(), argv)
    assert argv == ['main', '--config.arms', *rest]
  options = config.default()
  config_file._add_overrides(options, ['main', '--config.overrides.all.solver.ema', '0.1'])
  assert options.overrides.all.solver.to_dict() == {'ema': 0.0}


def test_of_a_tuple_that_comes_twice_the_last_counts():
  arms = [f'--config.arms={value}' for value in ('none', '("all",)', 'none,all')]
  argv = ['main', arms[0], '--seed=1', *arms[1:]]
  config_file._rewrite_tuples(config.default(), argv)
  assert argv == ['main', '--seed=1', "--config.arms=('none', 'all')"]
  argv[1:] = ['--config.arms=none', "--config.arms=('all',)"]
  config_file._rewrite_tuples(config.default(), argv)
  assert argv == ['main', "--config.arms=('all',)"]


def test_the_last_arms_of_the_command_line_are_trained():
  process = main('--config=configs/demo.py', '--config.arms=none', '--config.arms=wrong')
  assert "arms='wrong' is unknown" in error_line(process)
  process = main('--config=configs/demo.py', '--config.arms=wrong', '--config.arms=')
  assert 'arms is empty' in error_line(process)


def test_an_override_starts_with_the_common_value():
  options = config.default()
  config_file._add_overrides(options, ['main', '--config.overrides.all.solver.learning_rate=0.1'])
  assert options.overrides.all.solver.to_dict() == {'learning_rate': 0.01}
  assert options.overrides.all.selection.method == 'all'


@pytest.mark.parametrize(
  'arm', ['none', 'random', 'all', 'similar', 'classes', 'constant', 'rounds']
)
def test_every_arm_that_trains_can_be_overridden(arm):
  options = config.default()
  config_file._add_overrides(options, ['main', f'--config.overrides.{arm}.solver.ema=0.5'])
  assert options.overrides[arm].solver.to_dict() == {'ema': 0.0}


def test_the_last_config_counts_and_is_taken_out():
  argv = ['main', '--config=a.py', '--workdir=x', '--config', 'b.py:c', '--', '--config=d.py']
  assert config_file._take_config(argv) == 'b.py:c'
  assert argv == ['main', '--workdir=x', '--', '--config=d.py']
