"""python -m sjft_jax.main --config=configs/demo.py --workdir=runs/demo"""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of configs/. Options change by name: --config.training.steps=500. '
  'sjft_jax/config.py explains every one.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Where everything is kept; the same command resumes there. Default: runs/<name of the config>.',
)
_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Show where in the code an error arose.')


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    raise app.UsageError(f'unexpected {argv[1]!r}; options are written --config.a.b=value')
  file = Path(config_flags.get_config_filename(flags.FLAGS['config']))
  if not file.is_file():
    sys.exit(f'error: --config={file}: no such file; see configs/')
  workdir = Path(_WORKDIR.value or f'runs/{file.stem}')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save otherwise.
  # After the flags: --help and a misspelt option should not wait for JAX.
  from sjft_jax import pipeline

  try:
    pipeline.run(_CONFIG.value, workdir)
  except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
    if _TRACEBACK.value:
      raise
    message = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      message = f'the disk is full ({error}); make room and run the same command: it will resume'
    sys.exit(f'error: {message}')
  except KeyboardInterrupt:
    print(f'\nStopped. The same command goes on from the last checkpoint in {workdir}.')
    # At once: the loader's threads would keep the interpreter waiting.
    sys.stdout.flush()
    os._exit(130)


def parse(argv: list[str]) -> list[str]:
  """absl's flags; an option that the configuration does not have is one line, not a traceback."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:
    reason: object = error
    while isinstance(reason, Exception):  # They come wrapped in one another.
      reason = reason.args[0]
    sys.exit(f'error: unknown option {", ".join(str(reason).splitlines())}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=parse)
