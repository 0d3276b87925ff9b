"""The report in headless Chromium: it loads offline, can be used by all, and names stay text."""

import shutil

import pytest
from report import synthetic

from sjft_jax.report import draw, page

sync_api = pytest.importorskip('playwright.sync_api')
axe = pytest.importorskip('axe_playwright_python.sync_playwright')
CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)

pytestmark = [
  pytest.mark.slow,
  pytest.mark.browser,
  pytest.mark.skipif(not CHROMIUM, reason='Chromium is not installed'),
]

# As root Chromium needs the first; the others keep it from calling its maker.
_FLAGS = [
  *('--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'),
  *('--disable-background-networking', '--disable-component-update'),
]
CLASSES = ('<script>window.hacked = 1</script>', '<img src=x onerror="window.hacked = 1">', 'c')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return synthetic.make_run(tmp_path_factory.mktemp('run'), classes=CLASSES, images=30)


@pytest.fixture(scope='module')
def path(run, tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'report.html'
  page.write(path, draw.make_page(run))
  return path


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
    yield browser
    browser.close()


def open_page(browser, path, *, width=1440, scheme='light', **options):
  """Open the report; return its tab, what the console said, and what was requested."""
  context = browser.new_context(
    viewport={'width': width, 'height': 900}, color_scheme=scheme, offline=True, **options
  )
  tab = context.new_page()
  tab.set_default_timeout(120_000)
  messages, requests = [], []
  tab.on('console', lambda message: messages.append(message.text))
  tab.on('pageerror', lambda error: messages.append(str(error)))
  tab.on('request', lambda request: requests.append(request.url))
  tab.goto(f'file://{path}')
  places = tab.locator('[data-chart]').count()
  assert places > 5
  sync_api.expect(tab.locator('[data-chart] svg')).to_have_count(places, timeout=120_000)
  return tab, messages, [url for url in requests if not url.startswith('data:')]


@pytest.mark.parametrize('width', [390, 1440])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_page_loads_offline_fits_and_is_accessible(browser, path, width, scheme):
  tab, messages, requests = open_page(browser, path, width=width, scheme=scheme)
  assert messages == []
  assert requests == [f'file://{path}']
  assert tab.evaluate('document.documentElement.scrollWidth') <= width
  background = tab.evaluate('getComputedStyle(document.body).backgroundColor')
  assert (background == 'rgb(255, 255, 255)') == (scheme == 'light')
  tab.context.close()
  # The page's policy keeps axe out, too.
  tab, _, _ = open_page(browser, path, width=width, scheme=scheme, bypass_csp=True)
  tab.evaluate('for (const folded of document.querySelectorAll("details")) folded.open = true')
  tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']
  violations = axe.Axe().run(tab, options={'runOnly': tags}).response['violations']
  assert [(v['id'], [node['html'] for node in v['nodes']]) for v in violations] == []
  tab.context.close()


def test_choosing_a_target_by_mouse_and_keyboard_shows_its_neighbours(browser, path, run):
  tab, messages, _ = open_page(browser, path)
  rounds, ranking = run.rounds['rounds'], run.ranking
  hardest = sorted(range(30), key=lambda index: -rounds[-1].hardness[index])

  def expect_shown(index):
    title = f'{CLASSES[run.domains.target.labels[index]]}: {run.domains.target.key(index)}'
    sync_api.expect(tab.locator('#chosen-title')).to_have_text(title)
    neighbors = tab.locator('#chosen-neighbors li')
    expected = [rank for rank in (1, 2, 3, 4, 5, 10, 20, 40, 80, 160) if rank <= counts(index)[-1]]
    sync_api.expect(neighbors).to_have_count(len(expected))
    for position, rank in enumerate(expected):
      text = neighbors.nth(position).inner_text()
      source = ranking.indices[index, rank - 1]
      assert run.domains.source.classes[run.domains.source.labels[source]] in text
      assert f'{ranking.divergences[index, rank - 1]:.3g} nats' in text
    cells = tab.locator('#chosen-rounds tbody td:nth-child(2)').all_inner_texts()
    assert cells == [str(count) for count in counts(index)]

  def counts(index):
    return [int(round_.num_neighbors[index]) for round_ in rounds]

  expect_shown(hardest[0])
  tab.locator('#targets label').nth(4).click()
  expect_shown(hardest[4])
  tab.keyboard.press('ArrowRight')
  expect_shown(hardest[5])
  tab.locator('#class-choice').select_option('1')
  own = [index for index in hardest if run.domains.target.labels[index] == 1]
  sync_api.expect(tab.locator('#targets label:visible')).to_have_count(len(own))
  expect_shown(own[0])
  pictures = tab.locator('img').evaluate_all('images => images.map(image => image.naturalWidth)')
  assert min(pictures) > 0
  assert messages == []
  tab.context.close()


def test_class_names_stay_text(browser, path):
  tab, messages, _ = open_page(browser, path)
  for position in range(30):
    tab.locator('#targets label').nth(position).click()
  tab.locator('#classes .mark-rect path').first.hover(force=True)
  sync_api.expect(tab.locator('#vg-tooltip-element')).to_contain_text(CLASSES[0])
  assert tab.evaluate('window.hacked') is None
  text = tab.locator('body').inner_text()
  assert CLASSES[0] in text
  assert CLASSES[1] in text
  assert messages == []
  tab.context.close()
