"""The joint network: one trunk shared by both domains and one linear head for each."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from sjft_jax.models.preprocess import normalize


class Joint(nn.Module):
  """Trunk and two heads (Ge & Yu 2017, Section 3.1); every image passes through both heads.

  Parameters lie under 'trunk', 'target' and 'source'. Heads start at N(0, 0.01²) with zero bias,
  as in the released code.
  """

  trunk: nn.Module
  num_target_classes: int
  num_source_classes: int

  @nn.compact
  def __call__(
    self, images: UInt8[Array, 'b h w 3'], train: bool = False
  ) -> dict[str, Float[Array, 'b classes']]:
    features = self.trunk(normalize(images), train=train)
    heads = {'target': self.num_target_classes, 'source': self.num_source_classes}
    kernel_init = nn.initializers.normal(0.01)
    return {
      domain: nn.Dense(num_classes, kernel_init=kernel_init, name=domain)(features)
      for domain, num_classes in heads.items()
    }


def init(model: Joint, key: PRNGKeyArray, image_size: int) -> dict[str, Any]:
  """Random 'params' and 'batch_stats' (empty without batch norm) for square images of that size.

  Only the initialisers run, not the network: seconds saved in a deep one.
  """
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
  return {'batch_stats': {}, **model.lazy_init(key, images)}
