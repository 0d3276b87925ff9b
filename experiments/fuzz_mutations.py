"""Change the bytes of a file, or the values of JSON, at random."""

import json
from typing import Any

import numpy as np

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32_767, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
_NUMBERS += (2**62, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (None, True, -1, 0, 3, 0.5, 2**31, 2**63, 10**400, 1e308, float('nan'))
_VALUES += ('', 'x', '\0', '../..', 'a' * 10_000, [], {}, [[]], [1] * 1000, ['a', 'a'], {'a': {}})

Random = np.random.Generator


def mutate(content: bytes, others: list[bytes], rng: Random) -> bytes:
  """Return content that is changed in one to eight places."""
  if rng.random() < 0.5:
    with_values = _mutate_json(content, rng)
    if with_values is not None:
      return with_values
  data = bytearray(content)
  for _ in range(min(int(rng.geometric(0.4)), 8)):
    at = int(rng.integers(len(data) + 1))
    if rng.random() < 0.5:  # Headers are at the beginning, or at the end.
      at = min(at, int(rng.geometric(0.02)))
    elif rng.random() < 0.2:
      at = max(len(data) - int(rng.geometric(0.02)), 0)
    length = min(int(rng.geometric(0.05)), len(data) - at)
    other = others[int(rng.integers(len(others)))]
    start = int(rng.integers(len(other) + 1))
    match int(rng.integers(8)):
      case 0 if at < len(data):
        data[at] ^= 1 << int(rng.integers(8))
      case 1 if at < len(data):
        data[at] = int(rng.integers(256))
      case 2 | 3:
        size = int(rng.choice([1, 2, 4, 8]))
        number = int(rng.choice(np.array(_NUMBERS, object))) % 256**size
        if rng.random() < 0.3:
          number = (int.from_bytes(data[at : at + size], 'little') + 1) % 256**size
        order = 'little' if rng.random() < 0.5 else 'big'
        data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
      case 4:
        del data[at : at + length]
      case 5:
        data[at:at] = data[at : at + length] * int(rng.choice([1, 2, 1000]))
      case 6:
        data[at : at + length] = other[start : start + length]
      case 7 if rng.random() < 0.3:
        del data[at:]
  return bytes(data)


def _mutate_json(content: bytes, rng: Random) -> bytes | None:
  """Return JSON in which a value or a name is another; None if it is none."""
  try:
    document = json.loads(content)
  except ValueError:
    return None
  nodes = [(parent, key) for parent in _parents(document) for key in _keys(parent)]
  for _ in range(int(rng.geometric(0.6))):
    if not nodes:
      break
    parent, key = nodes[int(rng.integers(len(nodes)))]
    if key not in _keys(parent):
      continue
    source, other = nodes[int(rng.integers(len(nodes)))]
    value = _VALUES[int(rng.integers(len(_VALUES)))]
    match int(rng.integers(4)):
      case 0:
        del parent[key]
      case 1 if other in _keys(source):
        parent[key] = json.loads(json.dumps(source[other]))
      case 2 if isinstance(parent, dict):
        parent[str(value)[:100]] = parent.pop(key)
      case _:
        parent[key] = value
  return json.dumps(document).encode()


def _parents(node: Any) -> list[Any]:
  """Return all lists and dicts in a document."""
  inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
  own = [node] if isinstance(node, dict | list) else []
  return own + [parent for value in inner for parent in _parents(value)]


def _keys(node: Any) -> list[Any]:
  return list(node) if isinstance(node, dict) else list(range(len(node)))
