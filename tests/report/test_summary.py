import pytest

from sjft_jax.report.summary import verdict


@pytest.mark.parametrize(
  ('gain', 'error', 'claim'),
  [
    (-0.01, 0.02, 'no gain'),
    (0.0, 0.0, 'no gain'),
    (0.03, 0.02, 'may be chance'),
    (0.05, 0.02, 'beyond two standard errors'),
  ],
)
def test_verdict_claims_no_more_than_the_numbers(gain, error, claim):
  line = verdict({'name': 'selected', 'gain': gain, 'standard_error': error})
  assert claim in line
  assert f'{100 * gain:+.1f} points' in line
