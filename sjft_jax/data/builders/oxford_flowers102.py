"""Oxford Flowers 102 (Nilsback and Zisserman 2008): 1,020 images to train on, 1,020 for validation,
6,149 to test on.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive, labelled_members, read_matlab
from sjft_jax.data.builders.base import ArchiveBuilder

_URL = 'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/'
# In the order of the labels; the archives do not name them.
_NAMES = """
  pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger
  lily, moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king
  protea, spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily, balloon
  flower, giant white arum lily, fire lily, pincushion flower, fritillary, red ginger, grape
  hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william,
  carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped
  cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil,
  sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common
  dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura,
  geranium, orange dahlia, pink-yellow dahlia?, cautleya spicata, japanese anemone, black-eyed
  susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris, windflower,
  tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower,
  lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree
  mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove,
  bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper,
  blackberry lily
"""


class Builder(ArchiveBuilder):
  """Features, splits and class names are those of TFDS."""

  VERSION = tfds.core.Version('2.1.1')
  ARCHIVES = (
    Archive(
      '102flowers.tgz',
      _URL + '102flowers.tgz',
      344_862_509,
      'sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246',
    ),
    Archive(
      'imagelabels.mat',
      _URL + 'imagelabels.mat',
      502,
      'sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d',
    ),
    Archive(
      'setid.mat',
      _URL + 'setid.mat',
      14_989,
      'sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd',
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.make_info(
      {
        'image': tfds.features.Image(),
        'label': tfds.features.ClassLabel(names=' '.join(_NAMES.split()).split(', ')),
        'file_name': tfds.features.Text(),
      },
      _URL,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    paths = self.find_archives(dl_manager)
    labels = read_matlab(paths['imagelabels.mat'], 'labels') - 1
    numbers = {
      split: read_matlab(paths['setid.mat'], variable)
      for split, variable in (('train', 'trnid'), ('validation', 'valid'), ('test', 'tstid'))
    }
    return {
      split: self._generate_examples(
        paths['102flowers.tgz'],
        {f'jpg/image_{i:05d}.jpg': int(labels[i - 1]) for i in split_numbers},
      )
      for split, split_numbers in numbers.items()
    }

  def _generate_examples(
    self, path: Path, labels: Mapping[str, int]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, image, label in labelled_members(path, labels):
      file = PurePosixPath(name).name
      yield file, {'image': image, 'label': label, 'file_name': file}
