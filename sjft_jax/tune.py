"""Choose settings for every arm of a configuration on held-out training images.

  python -m sjft_jax.tune --config=configs/folder.py --workdir=runs/tuning \\
    --config.target.path=TARGET --config.source.path=SOURCE --minutes=60
  python -m sjft_jax.main --config=configs/folder.py --workdir=runs/tuned \\
    --config.target.path=TARGET --config.source.path=SOURCE --tuned=runs/tuning/tuned.json

The learning rate, its factors by layer and for the heads, and the weight of the source's loss are
chosen for every arm by one procedure, with as many settings tried for each; --config.tuning.steps
adds the number of steps. The target's training images are dealt to folds; every arm is trained
without the first one and predicts it, the better half of its settings goes on to the next fold, and
so on. No test image is decoded. The table names the arm to use, too. Stopped at any moment, the
same command goes on.
"""

import sys

from absl import flags

from sjft_jax.runtime import cli, config_file


def define_flags() -> None:
  """Define the flags of this command."""
  config_file.define_flag(sys.argv)
  flags.DEFINE_string(
    'workdir', None, 'Folder where everything is kept. Default: runs/<name of the config>-tuning.'
  )
  flags.DEFINE_float(
    'minutes',
    0.0,
    'Start no training after so many minutes, and choose among what was tried; 0: no limit.',
    lower_bound=0,
  )
  for module in (cli, config_file):
    flags.adopt_module_key_flags(module)


def main() -> None:
  """Run the command."""
  options = flags.FLAGS
  workdir = options.workdir or f'runs/{config_file.path().stem}-tuning'

  def run() -> None:
    # After the flags: --help and a misspelt option should not wait for JAX.
    import sjft_jax
    from sjft_jax.runtime import compilation

    compilation.enable_cache()
    sjft_jax.tune(options.config, workdir, minutes=options.minutes)

  cli.run_command(run, f'Stopped. The same command goes on from what is tried in {workdir}.')


if __name__ == '__main__':
  cli.start(define_flags, main)
