"""The report of a run as one HTML page with its styles, scripts and pictures inside."""

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from sjft_jax.report import charts
from sjft_jax.runtime import artifacts

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Table:
  """A table of texts.

  Attributes:
    caption: what it shows.
    headings: of the columns.
    rows: as many texts as headings each; the first is the heading of the row.
    numbers: the columns that hold numbers, which are set flush right.
    remark: a sentence below it.
    is_folded: whether it is shown only when asked for.
  """

  caption: str
  headings: Sequence[str]
  rows: Sequence[Sequence[str]]
  numbers: Sequence[int] = ()
  remark: str = ''
  is_folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
  """A chart.

  Attributes:
    caption: what it shows, above it.
    description: what a person who does not see it should know.
    spec: see `charts`.
    is_tall: whether it scrolls within the page.
  """

  caption: str
  description: str
  spec: charts.Spec
  is_tall: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
  """An image with some lines below it.

  Attributes:
    picture: its data URI.
    alt: its text for those who do not see it.
    lines: the lines.
  """

  picture: str
  alt: str
  lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Explorer:
  """Target images of which one can be chosen, to see its neighbours.

  Attributes:
    classes: number and name of the classes that can be chosen.
    targets: of each target image 'picture', 'name', 'class' and 'hardness', as texts.
    content: what the page's script reads: 'headings' of a table of rounds; 'pictures', data URIs;
      'targets', each with 'title', 'label' (its class's number), 'caption' and 'rounds' of its
      table, and 'neighbors' with 'picture' (its position), 'alt' and 'lines'.
  """

  classes: Sequence[tuple[int, str]]
  targets: Sequence[Mapping[str, str]]
  content: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Section:
  """A part of the page.

  Attributes:
    id: names it in links.
    title: its heading.
    text: its paragraphs.
    explorer, charts, pictures, tables: what it shows, in this order.
  """

  id: str
  title: str
  text: Sequence[str] = ()
  explorer: Explorer | None = None
  charts: Sequence[Chart] = ()
  pictures: Sequence[Picture] = ()
  tables: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
  """The whole report.

  Attributes:
    title: what was run.
    headline: the answer, in a sentence.
    lines: what else has to be said at once.
    sections: in their order.
    about: what the page is about, after the title in the browser's own line.
  """

  title: str
  headline: str
  lines: Sequence[str]
  sections: Sequence[Section]
  about: str = 'what was borrowed and what it gave'


def render(page: Page) -> str:
  """Return a page as HTML; names of classes and files are text in it, whatever they hold."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    auto_reload=False,
  )
  # What is inside a script ends at the first '</script', wherever that stands.
  scripts = [
    re.sub(r'<(?=/script|!--)', r'\\x3c', script, flags=re.IGNORECASE)
    for script in (charts.javascript(), (_FOLDER / 'page.js').read_text())
  ]
  template = environment.get_template('page.html')
  return template.render(
    page=page,
    scripts=scripts,
    script_hashes=' '.join(map(_source_hash, scripts)),
    style=(_FOLDER / 'page.css').read_text(),
    version=metadata.version('sjft_jax'),
  )


def write(path: os.PathLike[str], page: Page) -> None:
  """Write a page, which appears under its name once it is complete."""
  with artifacts.atomic_write(path) as file:
    file.write(render(page).encode(errors='replace'))  # The name of a folder may be no Unicode.


def _source_hash(script: str) -> str:
  """Return what a Content-Security-Policy calls a script: no other one runs in the page."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
