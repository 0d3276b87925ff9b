import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest

MODE = Path('/sys/kernel/mm/transparent_hugepage/enabled')
PROGRAM = """
import os, sys
from sjft_jax.runtime import launch
launch.reexec_with_huge_pages()
print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))
"""


@pytest.mark.skipif(
  not MODE.exists() or '[madvise]' not in MODE.read_text(),
  reason='huge pages are not on request here',
)
@pytest.mark.parametrize('tunables', [None, 'glibc.malloc.check=0'])
def test_program_starts_again_once_with_its_arguments(tunables):
  environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  environment |= {'GLIBC_TUNABLES': tunables} if tunables else {}
  command = [sys.executable, '-c', PROGRAM, '--a=b c', 'd']
  run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
  assert run.stdout == f"['--a=b c', 'd'] {tunables or 'glibc.malloc.hugetlb=1'}\n"


JOIN = """
from absl import flags
from sjft_jax.runtime import launch
launch.define_flags()
flags.FLAGS(['', '--distributed'])
launch.initialize_distributed()
import jax
print(jax.process_count(), jax.process_index())
"""
LAUNCHERS = {
  'slurm': {
    'SLURM_JOB_ID': '{number}',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '{process}',
    'SLURM_LOCALID': '{process}',
  },
  'open mpi': {
    'OMPI_MCA_orte_hnp_uri': '{number}.0;tcp://127.0.0.1:34911',
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': '{process}',
    'OMPI_COMM_WORLD_LOCAL_RANK': '{process}',
  },
}


@pytest.mark.slow
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_processes_find_each_other_in_the_environment_of_a_launcher(launcher):
  number = os.getpid()  # The job number decides the port.
  processes = []
  for process in range(2):
    environment = {
      name: value.format(number=number, process=process)
      for name, value in LAUNCHERS[launcher].items()
    }
    processes.append(commands.start([sys.executable, '-c', JOIN], subprocess.STDOUT, **environment))
  outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
  assert outputs == ['2 0', '2 1']


@pytest.mark.slow
def test_environment_without_processes_is_an_error_with_the_remedy():
  process = commands.start([sys.executable, '-c', JOIN], subprocess.STDOUT)
  output, _ = process.communicate(timeout=120)
  assert process.returncode != 0
  assert 'give --coordinator, --num_processes and --process_id' in output


FAILING = """
from sjft_jax.runtime import cli
from sjft_jax.runtime import launch
from sjft_jax.runtime import distributed
def work():
  print('begins', flush=True)
  launch.initialize_distributed()
  import jax
  if jax.process_index() == 1:
    raise ValueError('no class kitchen')
  distributed.barrier()
cli.start(launch.define_flags, lambda: cli.run_command(work, 'Stopped.', single_process=False))
"""


def start_one_of_two(process, port):
  flags = f'--coordinator=localhost:{port}', '--num_processes=2', f'--process_id={process}'
  return commands.start([sys.executable, '-c', FAILING, *flags], subprocess.STDOUT)


@pytest.mark.slow
def test_failure_of_one_process_ends_all():
  port = commands.free_port()
  processes = [start_one_of_two(process, port) for process in range(2)]
  outputs = [process.communicate(timeout=60)[0] for process in processes]
  assert 'error: process 1: no class kitchen\n' in outputs[0]
  assert 'error: no class kitchen\n' in outputs[1]
  assert [process.returncode for process in processes] == [1, 1]


@pytest.mark.slow
def test_process_that_waits_for_others_can_be_stopped():
  with start_one_of_two(0, commands.free_port()) as process:
    assert process.stdout.readline() == 'begins\n'
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
