"""gcp-storage-emulator, whose downloads tell an object's generation, as Google's do.

TensorStore reads it, and without it refuses to write an object again that it has read.
"""

from gcp_storage_emulator.handlers import objects

_download = objects.download


def download(request, response, storage, *args, **kwargs):
  _download(request, response, storage, *args, **kwargs)
  if response.status < 300:
    found = storage.get_file_obj(request.params['bucket_name'], request.params['object_id'])
    response['x-goog-generation'] = found['generation']


objects.download = download  # Before the server takes it into its routes.

if __name__ == '__main__':
  from gcp_storage_emulator.__main__ import main

  main()
