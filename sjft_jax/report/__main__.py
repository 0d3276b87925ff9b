"""Draw the report of a run: one HTML page that opens in any browser, without a network.

  python -m sjft_jax.report --run=runs/mine

The page is report.html in the work directory. A run draws it after every round by itself; this
command draws it again, of a run that is finished or under way. It needs the images of the run where
they were, so a run with relative paths needs the folder that it was started from.
"""

from absl import flags

from sjft_jax.runtime import cli, console


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string('run', None, 'Work directory, such as runs/mine.', required=True)
  flags.adopt_module_key_flags(cli)


def main() -> None:
  """Run the command."""
  cli.run_command(report, 'Stopped. Nothing was written.')


def report() -> None:
  """Draw the report of the run that the flags name.

  Raises:
    ValueError: it is no run, has no finished round, or its images have changed.
  """
  # After the flags: --help and a misspelt option should not wait for JAX.
  from sjft_jax.report import draw

  path = draw.open_run(flags.FLAGS.run).write()
  console.say(f'{path}: {path.stat().length / 1e6:,.1f} MB')


if __name__ == '__main__':
  cli.start(define_flags, main)
