import pytest
import tensorflow_datasets as tfds
from data.builders import archives

from sjft_jax.data.builders import mit_indoor67
from sjft_jax.data.prepare import prepare

ROOMS = ['airport_inside', 'winecellar', *(f'room_{i}' for i in range(65))]


@pytest.fixture
def images():
  """Four images a class, of which the lists name the first two and the third."""
  odd = archives.odd_images()
  names = [f'{room}/{i}_Some Room,{"gif" * (i == 1)}.jpg' for i in range(4) for room in ROOMS]
  return {
    name: odd[i] if i < len(odd) else archives.encode_image(i) for i, name in enumerate(names)
  }


@pytest.fixture
def folder(tmp_path, images, monkeypatch):
  folder = tmp_path / 'archives'
  folder.mkdir()
  everything = {f'Images/{name}': data for name, data in images.items()}
  archives.tar(folder / 'indoorCVPR_09.tar', everything | {'Images/bar/Thumbs.db': b'\0'})
  names = [name for room in reversed(ROOMS) for name in images if name.startswith(f'{room}/')]
  train = [name for name in names if '/0' in name or '/1' in name]
  (folder / 'TrainImages.txt').write_text('\n'.join(train))
  # With line ends of Windows and a blank line.
  test = '\r\n'.join(name for name in names if '/2' in name) + '\r\n\r\n'
  (folder / 'TestImages.txt').write_bytes(test.encode())
  archives.declare_official(monkeypatch, mit_indoor67.Builder, folder)
  return folder


def test_records_hold_the_images_of_the_lists(tmp_path, folder, images):
  prepare('mit_indoor67', str(tmp_path), str(folder))
  label = tfds.builder('mit_indoor67', data_dir=tmp_path).info.features['label']
  assert label.names == sorted(ROOMS)
  for split, numbers in (('train', '01'), ('test', '2')):
    records = archives.read_records('mit_indoor67', tmp_path, split)
    expected = [name for name in images if name.partition('/')[2][0] in numbers]
    assert len(expected) == 67 * len(numbers)
    assert [r['file_name'].decode() for r in records] == expected
    assert [r['image'] for r in records] == [images[name] for name in expected]
    assert [label.int2str(r['label']) for r in records] == [n.partition('/')[0] for n in expected]


def test_damaged_lists_are_named(tmp_path, folder):
  path = folder / 'TestImages.txt'
  path.write_text(
    '\n'.join(['bar/none.jpg', 'bar/neither.jpg', *path.read_text().splitlines()[2:]])
  )
  with pytest.raises(
    ValueError, match=r'indoorCVPR_09\.tar does not hold Images/bar/neither\.jpg and 1 more'
  ):
    prepare('mit_indoor67', str(tmp_path), str(folder))
  path.write_bytes(b'\xff\xfe\x00\xd8')
  with pytest.raises(ValueError, match=r'TestImages\.txt is no text file'):
    prepare('mit_indoor67', str(tmp_path), str(folder))


@pytest.mark.parametrize('content', ['short', 'the other list', 'a page'])
def test_lists_that_are_not_the_official_ones_are_named(tmp_path, folder, content):
  path, other = folder / 'TestImages.txt', folder / 'TrainImages.txt'
  lines = path.read_text().splitlines()
  text = {'short': '\n'.join(lines[:-3]), 'the other list': other.read_text(), 'a page': '<html>\n'}
  path.write_text(text[content])
  message = r'TestImages\.txt names \d+ images, the official list 67 that are not in the other'
  if content == 'the other list':  # Its images are in both.
    message = r'TrainImages\.txt names 134 images, .* not in the other list; remove it and get it'
  with pytest.raises(ValueError, match=message):
    prepare('mit_indoor67', str(tmp_path), str(folder))
