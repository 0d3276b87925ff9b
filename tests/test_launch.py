import os
import subprocess
import sys
from pathlib import Path

import pytest

MODE = Path('/sys/kernel/mm/transparent_hugepage/enabled')
PROGRAM = """
import os, sys
from sjft_jax import launch
launch.with_large_pages()
print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))
"""


@pytest.mark.skipif(
  not MODE.exists() or '[madvise]' not in MODE.read_text(), reason='a system with its own mind'
)
@pytest.mark.parametrize('there', [None, 'glibc.malloc.check=0'])
def test_a_program_starts_again_once_with_its_arguments(there):
  environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  environment |= {'GLIBC_TUNABLES': there} if there else {}
  command = [sys.executable, '-c', PROGRAM, '--a=b c', 'd']
  run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
  assert run.stdout == f"['--a=b c', 'd'] {there or 'glibc.malloc.hugetlb=1'}\n"
