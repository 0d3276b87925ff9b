from sjft_jax.runtime.option_names import name_overrides

OVERRIDES = {'mine': {'training': {'steps': 3}, 'solver': {'ema': 0.5}}, 'other': {}}


def test_only_what_an_arm_overrides_has_the_name_of_the_override():
  text = 'lower training.steps, training.steps_more or solver.l2_sp; training: steps=3'
  expected = (
    'lower overrides.mine.training.steps, training.steps_more or solver.l2_sp; '
    'overrides.mine.training: steps=3'
  )
  assert name_overrides(text, 'mine', OVERRIDES) == expected
  assert name_overrides(expected, 'mine', OVERRIDES) == expected
  for arm in ('other', 'a third'):
    assert name_overrides(text, arm, OVERRIDES) == text
