"""Export the network of a run to a folder that needs neither the run nor this package.

  python -m sjft_jax.export --run=runs/mine/arms/rounds --output=exported
  python -m sjft_jax.predict --run=exported --images=DIR

The folder holds the network as a program (StableHLO, for jax.export), its weights as safetensors,
config.json with the classes and the preprocessing, and README.md, a model card with data, settings,
scores and what was borrowed. Where timm or torchvision has the network, the weights are in the
names of that library, and timm reads the whole folder.

The network is the one of the run's newest checkpoint; with --fused, the networks of all rounds are
exported, whose probabilities are averaged.
"""

from absl import flags

from sjft_jax.runtime import cli


def define_flags() -> None:
  """Define the flags of this command."""
  flags.DEFINE_string(
    'run', None, 'Folder of one training, such as runs/mine/arms/rounds.', required=True
  )
  flags.DEFINE_string(
    'output',
    None,
    'Folder to write. One that is there is replaced if it is an export and holds nothing else.',
    required=True,
  )
  flags.DEFINE_bool('fused', False, 'Export the networks that each round ended with.')
  flags.adopt_module_key_flags(cli)


def main() -> None:
  """Run the command."""
  cli.run_command(export, 'Stopped. Nothing was written.')


def export() -> None:
  """Export the run that the flags name.

  Raises:
    ValueError: there is no trained network, or the output cannot be written.
  """
  options = flags.FLAGS
  # After the flags: --help and a misspelt option should not wait for JAX.
  import sjft_jax

  sjft_jax.export(options.run, options.output, fused=options.fused)


if __name__ == '__main__':
  cli.start(define_flags, main)
