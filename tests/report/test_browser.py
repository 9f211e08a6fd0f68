"""Pages as a browser draws them: nothing is wider than the screen, at desktop and phone width, light and dark; nothing
is asked of a network; and what was given stays text."""

import html
import json
import re
import shutil
import subprocess
from urllib.parse import urlsplit

import pytest

from lowbit.report import demo_report, write_comparison, write_report
from report.records import HOSTILE, continuations, layers, measures, outcome, record, rows
from report.test_comparison import RECORDS, checkpoint

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium to draw the pages with; install chromium")

WIDTHS = {"desktop": 1200, "phone": 390}

_PROBE = """
<script>
window.onload = () => {
  const root = document.documentElement;
  const colour = getComputedStyle(document.body).backgroundColor;
  const texts = [...document.querySelectorAll("h1, h2, p, td, th, dd, button")].filter(e => e.innerText.trim());
  const hidden = texts.filter(e => getComputedStyle(e).color === colour).length;
  const figures = [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect().height);
  parent.postMessage({width: innerWidth, content: root.scrollWidth, colour, hidden, figures}, "*");
};
</script>
"""
_FRAMES = """<!doctype html><output></output><script>
const found = [];
window.onmessage = event => {
  found.push(event.data);
  document.querySelector("output").textContent = JSON.stringify(found);
};
</script>
"""
"""A browser's window has a least width; a frame has none."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every page, written with a probe that measures it once it is drawn."""
    folder = tmp_path_factory.mktemp("pages")
    long_name = "model.layers.11.a_matrix_with_a_name_that_nobody_would_give.w"
    data = layers(12)
    data[0] |= {"name": long_name, "outcomes": [outcome()]}
    write_report(record(layers=data, measures=measures(), continuations=continuations()), folder)
    demo_report(rows(), {"original": "abc", "rtn": "abd"}, folder / "demo.html")
    write_comparison(RECORDS, folder / "compare.html")
    for path in folder.glob("*.html"):
        text = re.sub("<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))  # it would stop the probe
        path.write_text(text.replace("</body>", _PROBE + "</body>"), encoding="utf-8")
    return folder


def drawn(path, profile, dark):
    """What the probe of a page found at each of the widths."""
    frames = [f'<iframe src="{path.name}" width="{width}" height="900"></iframe>' for width in WIDTHS.values()]
    wrapper = path.with_name(f"frames of {path.name}")
    wrapper.write_text(_FRAMES + "".join(frames))
    document = dumped(wrapper, profile, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    return json.loads(html.unescape(re.search("<output>(.+?)</output>", document)[1]))


def dumped(path, profile, *options):
    """The document that a page has become in the browser."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
    command += ["--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("page", ["report.html", "compare.html", "demo.html"])
def test_pages_fit_the_screen_and_follow_the_readers_colours(pages, tmp_path, page):
    colours = []
    for dark in (False, True):
        found = drawn(pages / page, tmp_path, dark)
        assert sorted(one["width"] for one in found) == sorted(WIDTHS.values())
        for one in found:
            assert one["content"] <= one["width"]
            assert one["hidden"] == 0
            assert min(one["figures"]) > 20
        colours += {one["colour"] for one in found}
    assert len(set(colours)) == len(colours) == 2


def asked(path, profile):
    """Hosts that were asked for something while a page was open, without those that the browser itself reports to."""
    log = profile / "net.json"
    dumped(path, profile, f"--log-net-log={log}", "--host-resolver-rules=MAP * ~NOTFOUND")
    urls = [
        event["params"]["url"] for event in json.loads(log.read_text())["events"] if "url" in event.get("params", {})
    ]
    hosts = {urlsplit(url).hostname for url in urls}
    return {host for host in hosts if host and not re.fullmatch(r"(?!fonts).*\.(google|googleapis|gvt1)\.com", host)}


@pytest.fixture
def hostile(tmp_path):
    """A report and a comparison, as they are written, of a model whose every name is an attack."""
    attack = HOSTILE + "<img src=http://images.invalid/x onerror=\"document.title='broken in'\">"
    data = record(
        command=attack,
        recipe_name=attack,
        citations=[attack],
        model=record()["model"] | {"source": attack},
        layers=[one | {"name": attack + one["name"]} for one in layers()],
        measures=measures() | {"text": attack},
        continuations=[{"prompt": attack, "original": attack, "quantized": attack}],
    )
    write_report(data, tmp_path)
    rivals = {attack: checkpoint(3.0, 0.1, attack, model=data["model"]), "b": checkpoint(2.0, 0.2, model=data["model"])}
    write_comparison(rivals, tmp_path / "compare.html")
    return tmp_path


@pytest.mark.parametrize("page", ["report.html", "compare.html"])
def test_no_page_asks_the_network_for_anything(hostile, tmp_path, page):
    assert asked(hostile / page, tmp_path / "profile") == set()


def test_a_page_that_asks_would_be_seen(tmp_path):
    path = tmp_path / "asks.html"
    path.write_text("<img src=http://images.invalid/x><link rel=stylesheet href=http://fonts.googleapis.com/css>")
    assert asked(path, tmp_path / "profile") == {"images.invalid", "fonts.googleapis.com"}


def test_the_policy_lets_copying_run_and_nothing_that_was_given(hostile, tmp_path):
    document = dumped(hostile / "report.html", tmp_path / "profile")
    assert document.count('<button type="button">Copy</button>') == 3  # the command, the recipe, whom to cite
    assert "<title>broken in" not in document
