"""python -m sjft_jax.main --config=configs/demo.py --workdir=runs/demo"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sjft_jax import door, launch

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of configs/. Options change by name: --config.training.steps=500. '
  'sjft_jax/config.py explains every one.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Where everything is kept, a path or gs://bucket/path; the same command resumes there. Default: '
  'runs/<name of the config>.',
)
_RESUME_WITH_CHANGES = flags.DEFINE_bool(
  'resume_with_changes',
  False,
  'Resume although options have changed that change no result, such as --config.training.workers.',
)
for _module in (door, launch):
  flags.adopt_module_key_flags(_module)


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    sys.exit(f'error: unexpected {argv[1]!r}; options are written --config.a.b=value')
  file = Path(config_flags.get_config_filename(flags.FLAGS['config']))
  if not file.is_file():
    sys.exit(f'error: --config={file}: no such file; see configs/')
  workdir = _WORKDIR.value or f'runs/{file.stem}'
  # After the flags: --help and a misspelt option should not wait for JAX.
  from sjft_jax import compilation, pipeline

  compilation.keep()

  def run() -> None:
    launch.join()
    pipeline.run(_CONFIG.value, workdir, resume_with_changes=_RESUME_WITH_CHANGES.value)

  door.enter(
    run,
    stopped=f'Stopped. The same command goes on from the last checkpoint in {workdir}.',
    alone=launch.is_alone(),
  )


if __name__ == '__main__':
  launch.with_large_pages()
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=door.parse)
