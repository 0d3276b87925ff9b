"""Miniature archives in the official layouts, and what was prepared from them."""

import dataclasses
import hashlib
import io
import tarfile

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums


def encode_image(seed, kind='JPEG', mode='RGB', **options):
  """Return the bytes of an image file; each seed gives another picture."""
  pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).convert(mode).save(file, kind, **options)
  return file.getvalue()


def animated_gif(seed):
  frames = [PIL.Image.open(io.BytesIO(encode_image(seed + i, 'PNG'))) for i in range(3)]
  file = io.BytesIO()
  frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:])
  return file.getvalue()


def turned_jpeg(seed):
  """Return a JPEG whose camera was turned, as its EXIF orientation says."""
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  return encode_image(seed, exif=exif)


def odd_images():
  """Return images as real archives hold them under '.jpg'; the last two cannot be decoded."""
  return [
    encode_image(1, mode='L'),
    encode_image(2, mode='CMYK'),
    encode_image(3, 'PNG'),
    animated_gif(4),
    turned_jpeg(5),
    encode_image(6)[:150],
    b'',
  ]


def tar(path, files, mode='w'):
  """Write a tar archive of names and contents, with entries for folders as official ones have."""
  with tarfile.open(path, mode) as archive:
    folders = set()
    for name, content in files.items():
      folder = name.rpartition('/')[0]
      if folder and folder not in folders:
        folders.add(folder)
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))


def declare_official(monkeypatch, builder, folder):
  """Make a builder expect the miniature archives in a folder."""
  expected = []
  for archive in builder.ARCHIVES:
    content = (folder / archive.name).read_bytes()
    checksum = archive.checksum and f'sha256:{hashlib.sha256(content).hexdigest()}'
    size = archive.size and len(content)
    expected.append(dataclasses.replace(archive, size=size, checksum=checksum))
  monkeypatch.setattr(builder, 'ARCHIVES', tuple(expected))
  if hasattr(builder, 'NUM_IMAGES'):
    lists = {split: folder / f'{split.title()}Images.txt' for split in builder.NUM_IMAGES}
    counts = {
      split: sum(bool(line.strip()) for line in path.read_text().splitlines())
      for split, path in lists.items()
    }
    monkeypatch.setattr(builder, 'NUM_IMAGES', counts)


def check_published_archives(builder):
  """Check that sizes and checksums of a builder's archives are those in TFDS."""
  path = tfds.core.tfds_path(f'datasets/{builder.name}/checksums.tsv')
  published = checksums.load_url_infos(path)
  for archive in builder.ARCHIVES:
    assert archive.name == published[archive.url].filename
    assert archive.size == published[archive.url].size
    assert archive.checksum == f'sha256:{published[archive.url].checksum}'


def read_records(name, data_dir, split):
  """Read all records of a split; images stay encoded."""
  source = tfds.data_source(
    name, split=split, data_dir=data_dir, decoders={'image': tfds.decode.SkipDecoding()}
  )
  return [source[i] for i in range(len(source))]
