"""The report in headless Chromium: `make test-browser` (Debian: apt-get install chromium chromium-driver).

Screenshots of every page, light, dark and on a phone, stay in the folder that the variable SCREENSHOTS names.
"""

import base64
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gen_jax.report import make_report, write_report
from tests.report import fake

pytestmark = pytest.mark.browser
EVIL = '<b>b</b> &lt; <img src=x onerror=window.broken=1><script>window.broken=1</script>'


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """Three reports: a training sweep with a broken run, an evaluation sweep, lone runs without anything swept."""
    out = tmp_path_factory.mktemp('pages')
    training = fake.training_sweep(out / 'training')
    fake.write(training / 'runs' / EVIL.replace('/', '-'), fake.config(optim__lr=0.001, system__weighting__name=EVIL),
               [{'step': s, 'denoise/loss': v, 'time': 1.0} for s, v in ((1, 'nan'), (2, 3.0), (3, 2.5))],
               {'step': 600, 'guided': {'frechet': float('inf')}}, checkpoint=False,
               run={'overrides': {'optim.lr': 0.001, 'system.weighting.name': EVIL}, 'status': 'failed',
                    'error': f'ValueError: {EVIL}'})
    fake.sampling_sweep(out / 'sampling')
    rng = np.random.default_rng(0)
    for name, lr in (('one', 0.1), ('other', 0.2)):
        fake.write(out / 'lone' / name, fake.config(optim__lr=lr), fake.curve(rng, 1.0))
    for name in ('training', 'sampling', 'lone'):
        write_report(make_report([out / name]), out / name / 'report', f'The {name} page')
    return {name: f'file://{out}/{name}/report/report.html' for name in ('training', 'sampling', 'lone')}


@pytest.fixture(scope='module')
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    programs = {name: shutil.which(name) for name in ('chromium', 'chromedriver')}
    assert all(programs.values()), f'{programs}: install the Debian packages chromium and chromium-driver'
    options = webdriver.ChromeOptions()
    options.binary_location = programs['chromium']
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=Service(programs['chromedriver']))
    yield driver
    driver.quit()


class Page:
    """One page in the browser, with what a reader does."""

    def __init__(self, browser, url, width=1280, height=900, dark=False):
        self.browser = browser
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
            'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600})
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [
            {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]})
        browser.get_log('browser'), browser.get_log('performance')
        browser.get(url)
        self.js('localStorage.clear(); return 1')
        browser.get(url)

    def js(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def find(self, css):
        return self.browser.find_element('css selector', css)

    def until(self, code):
        from selenium.webdriver.support.ui import WebDriverWait
        return WebDriverWait(self.browser, 20).until(lambda _: self.js(code))

    def draw(self, section):
        """Scrolls a figure into view and waits for it."""
        self.js(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
        self.until(f"return document.querySelector('#{section} .figure .main-svg, #{section} .figure .empty')")

    def choose(self, id, value):
        self.js("const s = document.getElementById(arguments[0]); s.value = arguments[1];"
                "s.dispatchEvent(new Event('change'))", id, value)

    def filter(self, text):
        field = self.find('#filter')
        field.clear()
        field.send_keys(text or ' ')
        return self.find('#matches').text

    def rows(self, table):
        return self.js("return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map("
                       "r => [...r.cells].map(c => c.textContent.trim()))", table)

    def column(self, table, label):
        heads = self.js("return [...document.querySelectorAll(`#${arguments[0]} thead button`)].map("
                        "b => b.firstChild.textContent)", table)
        return [row[heads.index(label)] for row in self.rows(table)]

    def button(self, table, label):
        return next(b for b in self.browser.find_elements('css selector', f'#{table} thead button')
                    if self.js('return arguments[0].firstChild.textContent', b) == label)

    def shot(self, name):
        """A picture of the whole page, its figures drawn."""
        if folder := os.environ.get('SCREENSHOTS'):
            for section in ('axis', 'curves'):
                self.draw(section)
            self.js("scrollTo({top: 0, behavior: 'instant'})")
            size = self.js('return [innerWidth, document.documentElement.scrollHeight]')
            found = self.browser.execute_cdp_cmd('Page.captureScreenshot', {'captureBeyondViewport': True, 'clip': {
                'x': 0, 'y': 0, 'width': size[0], 'height': min(size[1], 8000), 'scale': 1}})
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f'{name}.png').write_bytes(base64.b64decode(found['data']))


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390, 320])
@pytest.mark.parametrize('name', ['training', 'sampling', 'lone'])
def test_it_loads_whole_and_quiet(browser, pages, name, width, dark):
    page = Page(browser, pages[name], width, dark=dark)
    for section in ('axis', 'curves'):
        page.draw(section)
    assert page.js('return document.documentElement.scrollWidth') <= width, 'the page itself does not scroll sideways'
    assert browser.get_log('browser') == [], 'no console errors or warnings'
    asked = [entry['message'] for entry in browser.get_log('performance') if 'Network.requestWillBeSent"' in
             entry['message']]
    assert asked and all('"url":"file:' in m or '"url":"data:' in m for m in asked), 'no network'
    broken = page.js("return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)")
    assert broken == [] and page.js('return document.images.length') == {'training': 6, 'sampling': 16, 'lone': 0}[name]
    assert page.js('return window.broken') is None and page.find('h1').text == f'The {name} page'
    page.shot(f'{name}-{width}-{"dark" if dark else "light"}')


def test_names_are_text(browser, pages):
    page = Page(browser, pages['training'])
    page.draw('curves')
    assert EVIL in page.column('groups-table', 'weighting')
    assert EVIL in page.find('#notes').text
    assert EVIL.replace('/', '-') in page.column('runs-table', 'run')
    page.choose('curve-metric', 'denoise/loss')
    shown = page.js("return [...document.querySelectorAll('#curve-figure .legendtext')].map(t => t.textContent)")
    assert any(EVIL in text for text in shown), 'in a legend of plotly too, which reads some HTML'
    assert page.js('return window.broken') is None


def numbers(texts):
    return [float(t.split()[0].replace('−', '-')) for t in texts if t[0] not in '–n']


def test_sorting(browser, pages):
    page = Page(browser, pages['sampling'])
    before = page.rows('groups-table')
    for expected in (1, -1):
        page.button('groups-table', 'guided/frechet').click()
        values = numbers(page.column('groups-table', 'guided/frechet'))
        assert values == sorted(values)[::expected] and len(values) == 16
        head = page.js("return [...document.querySelectorAll('#groups-table th')].map(t => t.ariaSort)")
        assert head.count('none') == len(head) - 1 and ('ascending' if expected > 0 else 'descending') in head
    page.button('groups-table', 'guided/frechet').click()
    assert page.rows('groups-table') == before, 'the third time as it was'
    page.button('groups-table', 'steps').send_keys('\n')  # by keyboard
    assert page.column('groups-table', 'steps') == [n for n in ('5', '10', '20', '50') for _ in range(4)], 'as numbers'
    page.button('runs-table', 'guided/accuracy').send_keys(' ')
    values = numbers(page.column('runs-table', 'guided/accuracy'))
    assert values == sorted(values) and len(values) == 48


def test_missing_values_come_last_in_either_direction(browser, pages):
    page = Page(browser, pages['training'])
    for _ in range(2):
        page.button('groups-table', 'guided/accuracy').click()
        assert page.column('groups-table', 'guided/accuracy')[-1] == '–'


@pytest.mark.parametrize('text, groups, runs', [
    ('solver=heun', 4, 12), ('evaluate.guided.settings.solver=heun steps=10', 1, 3), ('solver!=heun steps<20', 6, 18),
    ('heun', 4, 12), ('-heun', 12, 36), ('HEUN steps>=20', 2, 6), ('nfe=20', 4, 12), ('guided.seed=1', 16, 16),
    ('status=done', 16, 48), ('nothing like this', 0, 0), ('"solver=ddim, steps=50"', 1, 3), ('n=3', 16, 0),
    ('', 16, 48),
])
def test_filtering(browser, pages, text, groups, runs):
    page = Page(browser, pages['sampling'])
    assert page.filter(text) == f'{groups} of 16 groups'
    assert len(page.rows('groups-table')) == groups == len(page.rows('tests-table'))
    assert len(page.rows('runs-table')) == runs
    assert page.js("return document.querySelectorAll('#pictures .row').length") <= groups


def test_a_filter_on_a_metric_holds_for_figures_too(browser, pages):
    page = Page(browser, pages['sampling'])
    values = numbers(page.column('groups-table', 'guided/frechet'))
    page.filter('frechet<1.5')
    assert numbers(page.column('groups-table', 'guided/frechet')) == [v for v in values if v < 1.5]
    page.draw('axis')
    drawn = page.js("return document.getElementById('axis-figure').data.flatMap(t => [...t.y])")
    assert len(drawn) == sum(v < 1.5 for v in values)
    page.filter('frechet<0')
    assert 'No group of the filter' in page.find('#axis-figure').text
    page.filter('')
    page.until("return document.getElementById('axis-figure').data?.length === 4")


def hover(page, figure, trace=0, point=1):
    """Moves the mouse onto a point and returns what is shown."""
    from selenium.webdriver.common.action_chains import ActionChains
    x, y = page.js("""const g = document.getElementById(arguments[0]); const t = g.data[arguments[1]];
        g.scrollIntoView({block: 'center', behavior: 'instant'});
        const box = g.getBoundingClientRect(), l = g._fullLayout;
        const at = (axis, v) => axis._offset + axis.d2p(v);
        return [box.x + at(l.xaxis, t.x[arguments[2]]), box.y + at(l.yaxis, t.y[arguments[2]])]""",
        figure, trace, point)
    actions = ActionChains(page.browser)
    actions.w3c_actions.pointer_action.move_to_location(int(x) - 3, int(y) - 3)
    actions.w3c_actions.pointer_action.move_to_location(int(x), int(y))
    actions.perform()
    return page.until(f"return document.querySelector('#{figure} .hoverlayer .hovertext')?.textContent")


def test_hover_shows_the_value(browser, pages):
    page = Page(browser, pages['sampling'])
    page.draw('axis')
    text = hover(page, 'axis-figure')
    group = page.rows('groups-table')[1]
    assert 'solver=ddim, steps=10' in text and group[4].rstrip('*°') in text and '(n=3)' in text
    page = Page(browser, pages['training'])
    page.draw('curves')
    page.choose('curve-metric', 'heldout/loss')
    last = page.js("return document.getElementById('curve-figure').data.findIndex(t => t.hovertemplate)")
    text = hover(page, 'curve-figure', last, 2)
    assert 'step 300' in text and '±' in text and 'lr=0.0003' in text


def test_figures_follow_their_controls(browser, pages):
    page = Page(browser, pages['training'])
    page.draw('axis')
    figure = "return document.getElementById('axis-figure')"
    assert page.js(f"{figure}.layout.xaxis.type") == 'log', 'learning rates lie powers apart'
    assert [n.rpartition('.')[2] for n in page.js(f"{figure}.data.map(t => t.name)")][:2] == ['min_snr', 'simple']
    page.choose('axis-lines', '')
    assert len(page.js(f"{figure}.data")) >= 2, 'weightings still are lines of their own'
    page.choose('axis-x', 'weighting')
    assert page.js(f"{figure}.layout.xaxis.type") == 'category'
    before = page.js(f"{figure}.data[0].error_y.array[0]")
    page.choose('spread', 'ci')
    assert page.js(f"{figure}.data[0].error_y.array[0]") == pytest.approx(4.302653 * before, rel=1e-6)
    assert page.column('groups-table', 'guided/frechet')[0].count('[') == 1
    page.choose('axis-metric', 'heldout/loss')
    assert page.js(f"{figure}.layout.yaxis.title.text") == 'heldout/loss'
    final = page.column('groups-table', 'heldout/loss')
    page.choose('which', 'best')
    assert page.column('groups-table', 'heldout/loss') != final and 'flatters' in page.find('#legend').text


def test_columns_can_be_chosen(browser, pages):
    page = Page(browser, pages['training'])
    with pytest.raises(ValueError):
        page.column('groups-table', 'denoise/loss')
    page.find('#choose summary').click()
    page.js("[...document.querySelectorAll('#columns label')].find(l => l.textContent.trim() === 'denoise/loss')"
            ".querySelector('input').click()")
    assert len(page.column('groups-table', 'denoise/loss')) == 7 and page.column('runs-table', 'denoise/loss')


def test_pictures_of_one_seed_and_row_stand_below_each_other(browser, pages):
    page = Page(browser, pages['sampling'])
    rows = page.js("return [...document.querySelectorAll('#pictures .row')].map(r => { const s = r.children[1];"
                   "return [r.children[0].textContent, s.getBoundingClientRect().x, s.clientHeight]; })")
    assert len(rows) == 16 and rows[0][0] == 'solver=ddim, steps=5'
    assert len({x for _, x, _ in rows}) == 1 and {h for _, _, h in rows} == {50}, 'one row of 48 + 2 pixels each'
    first = page.js("return document.querySelector('#pictures img').src")
    page.choose('picture-seed', page.js("return document.getElementById('picture-seed').options[1].value"))
    assert page.js("return document.querySelector('#pictures img').src") != first
    page.choose('picture-row', '1')
    assert page.js("return document.querySelector('#pictures img').style.marginTop") == '-49px'
    page.choose('picture-row', 'all')
    assert page.js("return document.querySelector('#pictures .strip').clientHeight") == 99


def luminance(page, css, of='color'):
    import re
    code = f"return getComputedStyle(document.querySelector('{css}')).{of}"
    rgb = [int(v) / 255 for v in re.findall(r'\d+', page.js(code))[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_text_can_be_read_and_the_switch_overrules_the_system(browser, pages, dark):
    page = Page(browser, pages['training'], dark=dark)

    def contrast(css):  # WCAG 2: at least 4.5 for text
        a, b = sorted((luminance(page, css), luminance(page, 'body', 'backgroundColor')))
        return (b + 0.05) / (a + 0.05)

    assert (luminance(page, 'body', 'backgroundColor') < 0.1) is dark
    for css in ('body', 'a', '.facts', '.legend', 'td .spread', 'td .mark', '.status-failed', 'nav .warn'):
        assert contrast(css) >= 4.5, (css, contrast(css))
    page.draw('axis')
    text = page.js("return getComputedStyle(document.querySelector('#axis-figure .xtick text')).fill")
    assert (int(text.split('(')[1].split(',')[0]) > 128) is dark, 'figures follow'
    page.js("scrollTo({top: 0, behavior: 'instant'})")
    for name, background in (('light', False), ('dark', True)):
        page.find('#theme').click()
        assert page.find('#theme').text == f'Theme: {name}'
        assert (luminance(page, 'body', 'backgroundColor') < 0.1) is background
    page.find('#theme').click()
    assert (luminance(page, 'body', 'backgroundColor') < 0.1) is dark


def test_everything_is_reached_by_keyboard(browser, pages):
    from selenium.webdriver.common.keys import Keys
    page = Page(browser, pages['training'])
    seen = []
    for _ in range(40):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(page.js("const a = document.activeElement;"
                            "return a.id || a.getAttribute('href') || a.textContent || a.className"))
    assert seen[0] == '#results' and {'theme', 'filter', 'which', 'spread'} <= set(seen)
    assert any(s.startswith('guided/frechet') for s in seen), 'the heads of the table'
    assert page.js("document.getElementById('filter').focus(); return document.activeElement.matches(':focus-visible')")
