"""Lists as people have them, through the command line."""

import os

import pytest
from commands import refusal
from data.preview_command import output, preview, write

# Every test starts a command, which takes seconds.
pytestmark = pytest.mark.slow

LIST = 'path,label,split\n'


def test_list_that_is_a_pipe_or_a_device_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe.csv')
  (tmp_path / 'zero.csv').symlink_to('/dev/zero')
  for name in ('pipe.csv', 'zero.csv'):
    error = refusal(preview(tmp_path / name, HOME=str(tmp_path)))
    assert f'{name} cannot be read as a list of path and label: it is no regular file' in error


@pytest.mark.parametrize('name', ['list.csv', 'list.CSV', 'list.tsv'])
def test_list_in_the_current_folder_is_read(tmp_path, name):
  write(tmp_path, 'a.png', 'b.png', 'c.png', 'd.png')
  rows = 'path, label,note\na.png, x,1\nb.png,x ,2\nc.png,y,3\nd.png,y,\n'
  (tmp_path / name).write_text(rows.replace(',', '\t') if name.endswith('.tsv') else rows)
  assert 'target, list' in output(preview(name, cwd=tmp_path, HOME=str(tmp_path)))


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (f'{LIST}a.png,x,train\nsub/../a.png,x,test\n', "'a.png' and 'sub/../a.png', the same file"),
    (f'{LIST}a.png,x,train\n{{0}}/a.png,x,test\n', "a.png', the same file; keep one row"),
    (f'{LIST}a.png,x,train\n./a.png,x,test\n', "'a.png' and './a.png', the same file"),
    ('path,path,label\na.png,a.png,x\n', 'it has 2 columns path; keep one'),
    ('path,label\na.png,"x\ny"\n', "has the class name 'x\\ny'; rename it"),
    ('path;label\na.png;x\n', 'columns are separated by commas, in a .tsv by tabs'),
    ('path,label\nsub\\b.png,x\n', 'write / instead of \\ in its paths'),
    (f'{LIST}a.png,x,train\nsub/b.png,x,val\n', 'test_split=val tests on that'),
  ],
)
def test_list_is_refused_with_a_remedy(tmp_path, rows, message):
  write(tmp_path, 'a.png', 'sub/b.png')
  (tmp_path / 'list.csv').write_text(rows.format(tmp_path))
  error = refusal(preview(tmp_path / 'list.csv', HOME=str(tmp_path)))
  assert message in error
  assert 'list.csv' in error
