"""Write image files, and read the keys of a data set of them."""

import PIL.Image


def write(file, image):
  file.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(image).save(file)


def keys(data):
  return [data.key(index) for index in range(len(data))]
