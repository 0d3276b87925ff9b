"""Check the value of an option against the known ones."""

import difflib
from collections.abc import Collection


def choose(option: str, value: str, known: Collection[str]) -> str:
  """Return `value` if it is one of `known`.

  Args:
    option: the name of the option, for the message.
    value: the value to check.
    known: all possible values.

  Raises:
    ValueError: the value is not known; the message names the closest one.
  """
  if value in known:
    return value
  close = difflib.get_close_matches(str(value), known, 1)
  hint = f'did you mean {close[0]!r}? ' if close else ''
  raise ValueError(f'{option}={value!r} is unknown; {hint}use one of {", ".join(known)}')
