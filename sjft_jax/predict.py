"""Classifies the images of a folder with what a run has trained.

  python -m sjft_jax.predict --run=runs/mine/arms/rounds --images=DIR --output=predictions.csv

All images below the folder are read, at any depth. The output has a row for each: image (its path
below the folder), class (the likeliest) and probability (of that class). The network is the one of
the run's newest checkpoint; images are prepared as the run prepared its test images. Neither the
run's images nor its configuration file are needed, only its work directory.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from absl import app, flags

from sjft_jax import artifacts, config, door, launch
from sjft_jax.data.folder import Unlabelled
from sjft_jax.data.transforms import VIEWS
from sjft_jax.report import table, terminal

_RUN = flags.DEFINE_string(
  'run', None, 'Folder of one training, such as runs/mine/arms/rounds.', required=True
)
_IMAGES = flags.DEFINE_string('images', None, 'Folder of the images to classify.', required=True)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'File to write, .csv or .parquet; one that is there is replaced.', required=True
)
_VIEW = flags.DEFINE_enum(
  'view',
  None,
  VIEWS,
  'Over which crops of an image probabilities are averaged. Default: the first of the run.',
)
_EVERY_CLASS = flags.DEFINE_bool(
  'every_class', False, 'Adds a column for each class, with its probability.'
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, 'Images classified at once. Default: as the run did.', lower_bound=1
)
_MAX_BAD_SHARE = flags.DEFINE_float(
  'max_bad_share',
  config.default().screening.max_bad_share,
  'Images that cannot be read are left out and listed, up to this share of the folder.',
  lower_bound=0,
  upper_bound=1,
)
flags.adopt_module_key_flags(door)


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    sys.exit(f'error: unexpected {argv[1]!r}; options are written --name=value')
  door.enter(predict, stopped='Stopped. Nothing was written.')


def predict() -> None:
  """From the flags to the output.

  Raises:
    ValueError: impossible flags, before any work, or too many images that cannot be read.
  """
  output = Path(_OUTPUT.value)
  table.check(output)
  folder = Unlabelled(_IMAGES.value)
  # After the flags: --help and a misspelt option should not wait for JAX.
  import jax.numpy as jnp

  from sjft_jax import compilation, screening
  from sjft_jax.arm import Scorer
  from sjft_jax.models import joint, trunk
  from sjft_jax.models.weights import own
  from sjft_jax.training import step

  compilation.keep()
  trained = own.newest(_RUN.value)
  if trained.directory.parent.name != 'arms':
    raise ValueError(
      f'--run={_RUN.value}: {trained.directory} was trained on the source alone and knows no class '
      f'of the target; give a folder below {trained.workdir / "arms"}'
    )
  network, options = trained.network, json.loads((trained.workdir / 'config.json').read_text())
  body = trunk.build(
    **{name: network[name] for name in ('name', 'width', 'style', 'fully_connected')},
    **{name: options['model'][name] for name in ('batch_norm', 'batch_norm_momentum', 'dtype')},
  )
  of_target, of_source = (trained.params[head]['kernel'].shape[1] for head in ('target', 'source'))
  model = joint.Joint(body, of_target, of_source, network['normalization'])
  view = _VIEW.value or options['evaluation']['views'][0]
  score = Scorer(
    step.make_predict(model.apply),
    options['images'],
    views=(view,),
    batch_size=_BATCH_SIZE.value or options['evaluation']['batch_size'],
  )

  bad = output.with_name(f'{output.name}.bad_images.csv')
  (images,) = screening.readable((folder,), bad, max_bad_share=_MAX_BAD_SHARE.value)
  if images is folder:  # Nothing is in it.
    bad.unlink(missing_ok=True)
  state = step.TrainState(jnp.int32(trained.step), trained.params, trained.batch_stats, ())
  p = score(step.replicate(state), images, view)

  classes = pa.array(network['classes'])
  columns = {
    'image': pa.array([images.key(i) for i in range(len(images))]),
    'class': classes.take(pa.array(p.argmax(axis=1))),
    'probability': pa.array(p.max(axis=1)),
  }
  if _EVERY_CLASS.value:
    columns |= {f'probability of {c}': pa.array(of) for c, of in zip(classes, p.T, strict=True)}
  schema = pa.schema([(name, column.type) for name, column in columns.items()])
  with artifacts.written(output) as file:
    table.write(file, output.suffix, schema, [columns.values()])
  terminal.say(
    f'{output}: {len(images):,} images, {view}, by {trained.directory} after {trained.step:,} of '
    f'{options["training"]["steps"]:,} steps'
  )


if __name__ == '__main__':
  launch.with_large_pages()
  app.run(main, flags_parser=door.parse)
