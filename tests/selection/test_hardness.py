import numpy as np
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sjft_jax.selection.hardness import entropy


@given(hnp.arrays(np.float64, (5, 4), elements=st.floats(1e-3, 1)))
def test_entropy_equals_scipy(weights):
  p = weights / weights.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(entropy(p), scipy.stats.entropy(p, axis=1), rtol=1e-9, atol=1e-12)


def test_entropy_of_certainty_is_zero_and_of_ignorance_log_of_classes():
  p = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]], np.float32)
  np.testing.assert_allclose(entropy(p), [0, np.log(4)], rtol=1e-7)
