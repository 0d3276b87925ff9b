import numpy as np
from data.image_files import keys, write

from sjft_jax.data.dataset import Dataset
from sjft_jax.data.folder import UnlabelledFolder


def test_unlabelled_images_come_from_any_depth_in_sorted_order(tmp_path, image):
  for name in ('b.png', 'a/z/2.png', 'a/10.PNG', 'a/2.png', 'a.png', '.hidden/x.png', 'a/.x.png'):
    write(tmp_path / name, image)
  (tmp_path / 'a/notes.txt').write_text('not an image')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'folder.png').mkdir()
  data = UnlabelledFolder(str(tmp_path))
  assert isinstance(data, Dataset)
  assert [data.key(i) for i in range(len(data))] == [
    *('a/10.PNG', 'a/2.png', 'a/z/2.png', 'a.png', 'b.png')
  ]
  assert (data.name, len(data.classes)) == (tmp_path.name, 1)
  assert data.labels.tolist() == [0] * 5
  assert data.labels.dtype == np.int32
  np.testing.assert_array_equal(data[3], image)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, image):
  write(tmp_path / 'elsewhere/1.png', image)
  (tmp_path / 'data/a').mkdir(parents=True)
  (tmp_path / 'data/a/link').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data/a/up').symlink_to(tmp_path / 'data')
  (tmp_path / 'elsewhere/self').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data/broken.png').symlink_to(tmp_path / 'nowhere.png')
  data = UnlabelledFolder(str(tmp_path / 'data'))
  assert [data.key(i) for i in range(len(data))] == ['a/link/1.png']


def test_copies_that_exiftool_and_editors_leave_are_passed_over(tmp_path, image, capsys):
  write(tmp_path / '1.png', image)
  write(tmp_path / 'the_original.png', image)
  content = (tmp_path / '1.png').read_bytes()
  copies = ['1.png_original', '1.png.BAK', '1.png.orig', '1.png~']
  alone = ['2.png_original', '3.jpg.bak', 'without_original']  # No copy of anything.
  for name in (*copies, *alone):
    (tmp_path / name).write_bytes(content)
  names = sorted(['1.png', 'the_original.png', *alone])
  assert keys(UnlabelledFolder(str(tmp_path))) == names
  assert '4 copies that an editor left' in ' '.join(capsys.readouterr().out.split())
