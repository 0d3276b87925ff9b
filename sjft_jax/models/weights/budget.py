"""How much memory the content of a weight file may take, the same limit for all formats."""

# Three times the larger of the file and the trunk: float16 becomes twice as large, and a whole
# model of Keras has two more tensors for each of its weights. Files of small networks have names
# and lists that take more than their tensors.
_FACTOR = 3
_MIN_BYTES = 64 * 2**20

# What one part of a file, such as an opcode of a pickle or a field of a message, takes in Python at
# most. It also bounds the time: 300,000 parts take about a second.
PART_BYTES = 400


class Budget:
  """The bytes that may still be allocated beside the file's own content.

  Attributes:
    file_bytes: the size of the file.
  """

  def __init__(self, file_bytes: int, trunk_bytes: int = 0):
    """Start with a small multiple of the file's size or of that of the trunk's variables."""
    self.file_bytes = file_bytes
    self._total = self._left = _FACTOR * max(file_bytes, trunk_bytes, _MIN_BYTES)

  def take(self, num_bytes: int) -> None:
    """Count an allocation that is about to be made.

    Raises:
      ValueError: it is more than is left.
    """
    self._left -= num_bytes
    if self._left < 0:
      raise ValueError(
        f'its content takes more than {self._total // 2**20} MiB, {_FACTOR} times what the file or '
        'the network has'
      )
