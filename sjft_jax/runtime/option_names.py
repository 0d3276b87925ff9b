"""Name options in messages as users have to write them."""

import re
from collections.abc import Mapping
from typing import Any


def name_overrides(text: str, arm: str, overrides: Mapping[str, Any]) -> str:
  """Return a text in which options that an arm overrides have the names of its overrides.

  Args:
    text: a message, with options as 'section.option' or 'section: option'.
    arm: the name of the arm.
    overrides: of all arms: arm → section → option → value.
  """
  for section, options in overrides.get(arm, {}).items():
    for option in options:
      common = rf'(?<![\w./]){section}(?=(?:\.|: ){option}\b)'
      text = re.sub(common, lambda match: f'overrides.{arm}.{match[0]}', text)
  return text
