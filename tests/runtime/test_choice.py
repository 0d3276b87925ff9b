import pytest

from sjft_jax.runtime.choice import choose


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
