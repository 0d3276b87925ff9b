"""The page as text: nothing from outside, and names that stay text."""

import base64
import hashlib
import html.parser
import json
import re

import pytest

from sjft_jax.report import page
from sjft_jax.report.page import Explorer, Page, Picture, Section, Table

EVIL = '</script><script>alert(1)</script>"\'><img src=x onerror=alert(2)>&amp;\u2028'


class Parser(html.parser.HTMLParser):
  """Collects the elements of a page: name, attributes, and the text directly in it."""

  def __init__(self, text):
    super().__init__()
    self.elements = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs), []))

  def handle_endtag(self, tag):
    self.elements.append((f'/{tag}', {}, []))  # Text behind it is not in it.

  def handle_data(self, data):
    if self.elements:
      self.elements[-1][2].append(data)

  def texts(self, tag):
    return [''.join(texts) for name, _, texts in self.elements if name == tag]


@pytest.fixture(scope='module')
def parsed():
  content = {'headings': [EVIL], 'pictures': [], 'targets': [{'title': EVIL}]}
  explorer = Explorer(
    classes=[(0, EVIL)],
    targets=[{'picture': 'data:,', 'name': EVIL, 'class': EVIL, 'hardness': EVIL}],
    content=content,
  )
  table = Table(caption=EVIL, headings=(EVIL, EVIL), rows=[[EVIL, EVIL]], remark=EVIL)
  picture = Picture(picture='data:,', alt=EVIL, lines=[EVIL])
  section = Section(
    id='s', title=EVIL, text=[EVIL], explorer=explorer, pictures=[picture], tables=[table]
  )
  return Parser(page.render(Page(title=EVIL, headline=EVIL, lines=[EVIL], sections=[section])))


def test_names_stay_text(parsed):
  for tag in ('title', 'h1', 'h2', 'caption', 'td', 'option', 'p'):
    assert any(EVIL in text for text in parsed.texts(tag)), tag
  images = [attributes for tag, attributes, _ in parsed.elements if tag == 'img']
  assert [image['src'] for image in images] == ['data:,', 'data:,']
  assert all(image['alt'] == EVIL for image in images)
  data, *code = [texts for tag, _, texts in parsed.elements if tag == 'script']
  assert json.loads(''.join(data))['targets'][0]['title'] == EVIL
  assert len(code) == 2  # The libraries and the page's own script.


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_loaded(parsed):
  (policy,) = (
    attributes['content']
    for tag, attributes, _ in parsed.elements
    if attributes.get('http-equiv') == 'Content-Security-Policy'
  )
  assert policy.startswith("default-src 'none';")
  hashes = {
    f"'sha256-{base64.b64encode(hashlib.sha256(''.join(texts).encode()).digest()).decode()}'"
    for tag, attributes, texts in parsed.elements
    if tag == 'script' and attributes.get('type') != 'application/json'
  }
  assert set(re.search('script-src ([^;]*)', policy)[1].split()) == hashes
  for _, attributes, _ in parsed.elements:
    for name in ('src', 'href'):
      assert re.match(r'data:|#', attributes.get(name, '#'))
