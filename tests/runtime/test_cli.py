"""Commands end with one line and the right status, whatever becomes of their output."""

import signal
import subprocess
import sys

import commands
import pytest

from sjft_jax.runtime import launch


def start(work, main='cli.run_command(work, "Stopped.")', stderr=subprocess.PIPE, **environment):
  """Start a command whose `work` consists of these lines; signals work as in a foreground job."""
  program = (
    'import signal\n'
    'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    'import sys, time\n'
    'from sjft_jax.runtime import cli, console, preemption\n'
    'def work():\n'
    + ''.join(f'  {line}\n' for line in work.splitlines())
    + f'def main():\n  {main}\n'
    'cli.start(lambda: None, main)\n'
  )
  return commands.start([sys.executable, '-c', program], stderr, **environment)


@pytest.mark.parametrize(
  ('error', 'status', 'expected'),
  [
    ('ValueError("steps=0")', 1, 'error: steps=0\n'),
    ('OSError(28, "No space", "a.npz")', 1, 'error: the disk is full at a.npz; make room'),
    ('RuntimeError("os_error_code=\'122\'") from OSError(122, "")', 1, 'error: the quota of this'),
    ('RuntimeError("a slip")', 1, 'Traceback'),
    ('KeyboardInterrupt()', 130, ''),
  ],
)
def test_expected_error_ends_in_one_line(error, status, expected):
  process = start(f'raise {error}')
  output, errors = process.communicate(timeout=60)
  assert process.returncode == status
  assert errors.startswith(expected)
  if not expected.startswith('Traceback'):
    assert errors.count('\n') == bool(expected)
  assert output == ('\nStopped.\n' if status == 130 else '')


STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
STEPS = """
with preemption.defer_signals():
  for step in range(10_000):
    console.say(f'step {step}')
    if preemption.should_stop():
      console.say('saving')
      preemption.raise_if_stopping()
    time.sleep(0.05)
"""


@pytest.mark.parametrize(('number', 'status'), STOPS)
@pytest.mark.parametrize('work', [STEPS, 'console.say("step 0")\ntime.sleep(60)'])
def test_signals_end_a_command_with_their_status(work, number, status):
  process = start(work)
  assert process.stdout.readline() == 'step 0\n'
  process.send_signal(number)
  output, errors = process.communicate(timeout=60)
  assert process.returncode == status
  assert output.endswith('\nStopped.\n')
  assert 'Traceback' not in errors


@pytest.mark.parametrize(('number', 'status'), STOPS)
@pytest.mark.parametrize('work', [STEPS, 'console.say("step 0")\ntime.sleep(60)'])
@pytest.mark.parametrize('stderr', [subprocess.PIPE, subprocess.STDOUT])
def test_signals_that_end_tee_too_leave_status_and_work(work, stderr, number, status, tmp_path):
  """Ctrl-C reaches the whole pipeline; `| tee` is gone before the command writes its last lines."""
  saved = tmp_path / 'saved'
  work = work.replace("console.say('saving')", f"console.say('saving'); open({str(saved)!r}, 'w')")
  with start(work, stderr=stderr) as process:
    assert process.stdout.readline() == 'step 0\n'
    process.stdout.close()
    process.send_signal(number)
    errors = process.stderr.read() if process.stderr else ''
    assert process.wait(60) == status
  assert 'Traceback' not in errors
  assert 'BrokenPipe' not in errors
  assert saved.exists() == ('saving' in work)


def test_command_goes_on_without_a_reader_of_its_output(tmp_path):
  done = tmp_path / 'done'
  work = (
    'console.say("begins")\ntime.sleep(1)\n'
    f'console.say("goes on")\nconsole.say("goes on")\nopen({str(done)!r}, "w")'
  )
  with start(work) as process:
    assert process.stdout.readline() == 'begins\n'
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ''
  assert done.exists()


@pytest.mark.parametrize(('number', 'status'), STOPS)
def test_signals_while_modules_are_imported_give_no_traceback(number, status):
  process = start('pass', main='print("imports", flush=True); time.sleep(60)')
  assert process.stdout.readline() == 'imports\n'
  process.send_signal(number)
  output, errors = process.communicate(timeout=60)
  assert process.returncode == status
  assert output == '\nStopped.\n'
  assert 'Traceback' not in errors


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1'])
def test_output_that_cannot_encode_a_dash_gets_a_question_mark(encoding):
  process = start('console.say("1 – 2")\nprint("3 – 4")', PYTHONIOENCODING=encoding)
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert output == '1 ? 2\n3 ? 4\n'


@pytest.mark.parametrize('flag', ['--help', '--helpshort', '--helpfull'])
def test_help_exits_with_status_0(flag):
  process = commands.start([sys.executable, '-m', 'sjft_jax.main', flag])
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert '--workdir' in output


def test_help_without_a_reader_gives_no_traceback():
  with commands.start([sys.executable, '-m', 'sjft_jax.main', '--helpfull']) as process:
    process.stdout.close()
    assert process.stderr.read() == ''
    assert process.wait(60) == 0


HOSTILE = r'\x1b]0;owned\x07\r\x1b[2J\u202e[/b]\nsecond'


@pytest.mark.parametrize(
  'work',
  [
    f'raise ValueError("{HOSTILE}")',
    f'raise RuntimeError("{HOSTILE}")',
    f'import warnings; warnings.warn("{HOSTILE}")',
    f'import logging; logging.StreamHandler().emit(logging.makeLogRecord({{"msg": "{HOSTILE}"}}))',
    f'from absl import logging; logging.set_verbosity(0); logging.error("{HOSTILE}")',
    f'print("{HOSTILE}", file=sys.stderr)',
    f'sys.exit("{HOSTILE}")',
    f'import threading\nt = threading.Thread(target=lambda: int("{HOSTILE}"))\nt.start(); t.join()',
  ],
)
def test_nothing_that_a_terminal_acts_upon_reaches_stderr(work):
  _, errors = start(work).communicate(timeout=60)
  assert r'\x1b]0;owned\x07\r\x1b[2J\u202e' in errors.replace('\\\\', '\\')
  assert errors.replace('\n', '').isprintable()
  if work.startswith('raise ValueError'):
    assert errors.count('\n') == 1


def test_long_error_keeps_its_beginning_and_its_remedy():
  process = start('raise ValueError("a.png is wrong" + " x" * 10**6 + "; delete it")')
  _, errors = process.communicate(timeout=60)
  assert len(errors) < 1000
  assert errors.startswith('error: a.png is wrong x')
  assert errors.endswith('x; delete it\n')
  assert process.returncode == 1


@pytest.mark.parametrize(('number', 'status'), STOPS)
def test_stop_that_an_import_swallows_keeps_its_status(number, status):
  """C extensions and `except` clauses turn what a signal throws into other errors."""
  work = (
    'try:\n  console.say("imports"); time.sleep(60)\n'
    'except BaseException:\n  raise ImportError("cannot import name x") from None'
  )
  process = start(work)
  assert process.stdout.readline() == 'imports\n'
  process.send_signal(number)
  output, errors = process.communicate(timeout=60)
  assert (process.returncode, errors) == (status, '')
  assert output == '\nStopped.\n'


@pytest.mark.parametrize('module', ['sjft_jax.main', 'sjft_jax.predict'])
def test_ctrl_c_before_a_command_handles_it_gives_no_traceback(module):
  """Sent once the package is imported, and before its first module is."""
  program = (
    'import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);'
    f'os.execv(sys.executable, [sys.executable, "-X", "importtime", "-m", "{module}", "--help"])'
  )
  process = commands.start([sys.executable, '-c', program])
  while not process.stderr.readline().endswith('| sjft_jax\n'):
    assert process.poll() is None
  process.send_signal(signal.SIGINT)
  output, errors = process.communicate(timeout=60)
  assert process.returncode == -signal.SIGINT  # A shell reports it as 130.
  assert not output
  assert 'Traceback' not in errors


LIMITED = """
import os, resource
from sjft_jax.runtime import cli
if {is_other_user} and os.getuid() == 0:
  os.setgid(65534); os.setuid(65534)  # The superuser may start any number.
resource.setrlimit(resource.RLIMIT_{name}, ({soft}, {hard}))
cli.start(lambda: None, lambda: cli.run_command(lambda: print('works'), 'Stopped.'))
"""


def start_limited(name, soft, hard):
  program = LIMITED.format(name=name, soft=soft, hard=hard, is_other_user=name == 'NPROC')
  return commands.start([sys.executable, '-c', program], GLIBC_TUNABLES='')


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('NOFILE', 60, 'this process may open 60 files'),
    ('NPROC', 20, 'no more processes or threads may start; raise the limit (ulimit -u)'),
  ],
)
def test_limit_of_the_system_is_one_line(name, value, message):
  assert message in commands.refusal(start_limited(name, value, value))


def test_soft_limit_of_files_is_raised():
  output, errors = start_limited('NOFILE', 60, 4096).communicate(timeout=60)
  assert (output, errors) == ('works\n', '')


def test_hidden_proc_is_one_line(monkeypatch):
  monkeypatch.setattr(launch.os, 'access', lambda path, mode: path != '/proc/cpuinfo')
  with pytest.raises(ValueError, match='/proc is hidden, .*; mount it'):
    launch.check_limits()
