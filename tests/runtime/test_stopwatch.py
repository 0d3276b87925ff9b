import jax
import pytest

from sjft_jax.runtime import stopwatch


@pytest.mark.parametrize(
  ('start', 'each', 'most', 'expected'),
  [
    (0.5, 0.02, 1000, (0.5, 0.02)),
    (0.5, 0.02, 3, (0.5, 0.02)),
    (0.5, 0.02, 1, (0, 0.52)),
    (0.0, 60.0, 1000, (0, 60)),
  ],
)
def test_work_is_measured_apart_from_its_start_and_its_compilation(
  start, each, most, expected, monkeypatch
):
  calls = []

  def seconds(work, items):
    work(items)
    if len(calls) > 1:
      return start + each * items
    jax.monitoring.record_event_duration_secs('/jax/core/compile/backend_compile_duration', 9)
    return start + each * items + 9

  monkeypatch.setattr(stopwatch, '_seconds', seconds)
  watch = stopwatch.Stopwatch()
  assert watch.measure('work', calls.append, most) == pytest.approx(expected)
  assert watch.compile_seconds == pytest.approx(9)
  assert max(calls) <= most
  # Long work is done once.
  assert len(calls) == 1 or each < 5
  assert len(calls) <= 2 or sum(start + each * items for items in calls[2:]) < 5
