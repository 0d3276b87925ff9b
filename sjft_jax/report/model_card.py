"""The model card of an exported network, in Hugging Face's format: YAML, then Markdown."""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jinja2

from sjft_jax.runtime import console


@dataclass(frozen=True)
class Score:
  """A score of the network on the test images.

  Attributes:
    view: of the evaluation.
    name: of the score.
    value: as a share.
    low, high: its 95 % interval.
  """

  view: str
  name: str
  value: float
  low: float
  high: float


@dataclass(frozen=True, kw_only=True)
class ModelCard:
  """What a model card says.

  Attributes:
    name: of the export.
    network: the name of the trunk.
    classes: their names.
    training: what it was trained on, and together with what, in words.
    step, num_steps: how far the training has come.
    files: of weights, one for each round if there are several.
    library, architecture: whose network it equals, and which; '' if none.
    has_image_size: whether timm builds the network for images of one size.
    resize, crop: of its images, in pixels.
    mean, deviation: of the normalisation, by channel.
    dtype: of activations.
    views: of the evaluation, the first one first.
    num_test: test images.
    is_screened: whether copies of test images were kept out of the training.
    scores: none if they are not known.
    gain: a line on the gain over plain fine-tuning; '' if that is not known.
    target, source, pretrained: what it was trained on and started from; '' for none.
    data: further lines, as name and value.
    borrowed: the most borrowed source classes with the number and share of pairs or images.
    borrowed_unit: 'pairs', of a target image and a neighbour, or 'images'.
    settings: name, value and default of each option that is not at its default.
  """

  name: str
  network: str
  classes: Sequence[str]
  training: str
  step: int
  num_steps: int
  files: Sequence[str]
  library: str
  architecture: str
  has_image_size: bool
  resize: int
  crop: int
  mean: Sequence[float]
  deviation: Sequence[float]
  dtype: str
  views: Sequence[str]
  num_test: int
  is_screened: bool
  scores: Sequence[Score]
  gain: str
  target: str
  source: str
  pretrained: str
  data: Sequence[tuple[str, str]]
  borrowed: Sequence[tuple[str, int, float]]
  borrowed_unit: str
  settings: Sequence[Sequence[str]]

  @property
  def names(self) -> str:
    """Return whose names the weights have, in words."""
    if not self.library:
      return 'the names and layouts of sjft_jax, for Flax'
    is_shared = re.fullmatch(r'resnet(18|34|50|101|152)', self.architecture)
    also = ', which are torchvision’s too' if is_shared else ''
    return f'{self.library}’s names{also}'

  @property
  def timm_arguments(self) -> str:
    """Return what `timm.create_model` takes beside the architecture."""
    arguments = f'num_classes={len(self.classes)}'
    return f'{arguments}, dynamic_img_size=True' if self.has_image_size else arguments


def render(card: ModelCard) -> str:
  """Return a card as text; names of classes and files are text in it, whatever they hold."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    # It is Markdown; every name passes one of these filters.
    autoescape=False,
    undefined=jinja2.StrictUndefined,
    auto_reload=False,
    keep_trailing_newline=True,
  )
  environment.filters |= {'text': escape_markdown, 'quote': quote_yaml}
  return environment.get_template('model_card.jinja').render(
    card=card, version=metadata.version('sjft_jax')
  )


def escape_markdown(text: str) -> str:
  """Return text of any origin such that Markdown shows it as it is, in one line."""
  escaped = html.escape(console.printable(text), quote=False)
  return re.sub(r'([\\`*_{}\[\]()#+!|~$^])', r'\\\1', escaped)


def quote_yaml(text: str) -> str:
  """Return text of any origin as a scalar of YAML."""
  return json.dumps(console.printable(text), ensure_ascii=False)
