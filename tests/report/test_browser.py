"""Pages as a browser draws them: nothing is wider than the screen, at desktop and phone width, light and dark."""

import html
import json
import re
import shutil
import subprocess

import pytest

from lowbit.report import demo_report, write_comparison, write_report
from report.records import continuations, layers, measures, outcome, record, rows
from report.test_comparison import RECORDS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium to draw the pages with; install chromium")

WIDTHS = {"desktop": 1200, "phone": 390}

_PROBE = """
<script>
window.onload = () => {
  const root = document.documentElement;
  const colour = getComputedStyle(document.body).backgroundColor;
  const texts = [...document.querySelectorAll("h1, h2, p, td")].filter(e => e.innerText.trim());
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
        path.write_text(path.read_text(encoding="utf-8").replace("</body>", _PROBE + "</body>"), encoding="utf-8")
    return folder


def drawn(path, profile, dark):
    """What the probe of a page found at each of the widths."""
    frames = [f'<iframe src="{path.name}" width="{width}" height="900"></iframe>' for width in WIDTHS.values()]
    wrapper = path.with_name(f"frames of {path.name}")
    wrapper.write_text(_FRAMES + "".join(frames))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=5000", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run([*command, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search("<output>(.+?)</output>", done.stdout)[1]))


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
