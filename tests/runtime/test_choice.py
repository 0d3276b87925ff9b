import numpy as np
import pytest

from sjft_jax.runtime.choice import choose, whole_number


def test_known_value_is_returned():
  assert choose('color', 'red', ('red', 'green')) == 'red'


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ('gren', "color='gren' is unknown; did you mean 'green'? use one of red, green"),
    ('', "color='' is unknown; use one of red, green"),
  ],
)
def test_unknown_value_is_refused_with_the_known_ones(value, message):
  with pytest.raises(ValueError, match=r'is unknown') as error:
    choose('color', value, ('red', 'green'))
  assert str(error.value) == message


def test_whole_numbers_become_those_of_python():
  assert type(whole_number('k', np.int64(3), 1)) is int


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (1.5, 'k=1.5 must be a whole number'),
    ('3', "k='3' must be a whole number"),
    (0, 'k=0 must be 1 or more'),
  ],
)
def test_other_numbers_are_refused(value, message):
  with pytest.raises(ValueError, match='k=') as error:
    whole_number('k', value, 1)
  assert str(error.value) == message
