"""Train the arms of a configuration and compare them.

  python -m sjft_jax.main --config=configs/demo.py --workdir=runs/demo

Stopped at any moment, the same command goes on from its last checkpoint.
"""

import sys

from absl import flags

from sjft_jax.runtime import cli, config_file, launch


def define_flags() -> None:
  """Define the flags of this command."""
  config_file.define_flag(sys.argv)
  flags.DEFINE_string(
    'workdir',
    None,
    'Where everything is kept, a path or gs://bucket/path; the same command resumes there. '
    'Default: runs/<name of the config>.',
  )
  flags.DEFINE_bool(
    'resume_with_changes',
    False,
    'Resume although options have changed that change no result, such as '
    '--config.training.workers.',
  )
  flags.DEFINE_string(
    'tuned', None, 'The tuned.json of sjft_jax.tune: train every arm with what was chosen for it.'
  )
  flags.DEFINE_bool(
    'dry_run', False, 'Print what the run takes, from a calibration of some seconds; write nothing.'
  )
  flags.DEFINE_enum('stop_after', '', ['', 'screen', 'rank', 'pretrain'], 'End after this stage.')
  flags.DEFINE_integer(
    'profile',
    0,
    'Trace so many steps of the first arm for a trace viewer, into <workdir>/profile.',
    lower_bound=0,
  )
  launch.define_flags()
  for module in (cli, config_file, launch):
    flags.adopt_module_key_flags(module)


def main() -> None:
  """Run the command."""
  options = flags.FLAGS
  workdir = options.workdir or f'runs/{config_file.path().stem}'
  # After the flags: --help and a misspelt option should not wait for JAX.
  import sjft_jax
  from sjft_jax import planning
  from sjft_jax.runtime import compilation

  compilation.enable_cache()

  def run() -> None:
    launch.initialize_distributed()
    if options.dry_run:
      for name in ('stop_after', 'profile'):
        if options[name].value:
          raise ValueError(f'--dry_run plans a whole run; leave --{name} out')
      planning.print_plan(sjft_jax.plan(options.config, tuned=options.tuned))
      return
    sjft_jax.train(
      options.config,
      workdir,
      tuned=options.tuned,
      resume_with_changes=options.resume_with_changes,
      stop_after=options.stop_after,
      profile_steps=options.profile,
    )

  resumes = f'The same command goes on from the last checkpoint in {workdir}.'
  cli.run_command(
    run,
    'Stopped.' if options.dry_run else f'Stopped. {resumes}',
    single_process=launch.is_single_process(),
  )


if __name__ == '__main__':
  cli.start(define_flags, main)
