"""Check the value of an option."""

import difflib
import operator
from collections.abc import Collection
from typing import SupportsIndex


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


def whole_number(option: str, value: SupportsIndex, minimum: int) -> int:
  """Return `value` as an integer of Python; one of NumPy could not be written as JSON.

  Args:
    option: the name of the option, for the message.
    value: the value to check.
    minimum: the smallest possible value.

  Raises:
    ValueError: the value is no whole number, or below the minimum.
  """
  try:
    number = operator.index(value)
  except TypeError as error:
    raise ValueError(f'{option}={value!r} must be a whole number') from error
  if number < minimum:
    raise ValueError(f'{option}={number} must be {minimum} or more')
  return number
