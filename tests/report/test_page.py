"""The pages say everything they were given, escape it, and need nothing from outside."""

import hashlib
import json
import re
from base64 import b64encode
from html.parser import HTMLParser

import pytest

from lowbit.report import demo_report, write_report
from lowbit.report.figures import pareto_figure
from lowbit.report.page import _breakable
from report.records import HOSTILE, continuations, layer, layers, measures, outcome, parts, record, rows

_VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


class Page(HTMLParser):
    """The text and attributes of a page; fails on elements that are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.text, self.attributes, self.elements, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th", "text"):
            self.text.append(" ")

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return " ".join("".join(self.text).split())


def written(folder, data):
    write_report(data, folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def assert_nothing_from_outside(html):
    page = Page(html)
    assert not {"link", "iframe", "img"} & set(page.elements)
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in policy
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert all(link.startswith("#") for link in links)
    assert "//" not in "".join(re.findall(r"url\([^)]*\)", html))
    assert "@import" not in html


def test_json_is_the_record(tmp_path):
    data = record(measures=measures())
    write_report(data, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == data


def test_every_layer_and_outcome_and_what_was_left_alone_is_on_the_page(tmp_path):
    damped = outcome("damping raised", "0.1 was used.", "Use more tokens.")
    dead = outcome("dead inputs", "3 of 64 inputs.", "Calibrate on more text.")
    data = record(layers=[*layers(), layer("lm_head", outcomes=[damped]), layer("x.9.fc", outcomes=[damped, dead])])
    words = written(tmp_path, data).words()
    for name in [*(one["name"] for one in data["layers"]), "model.embed_tokens"]:
        assert name in words
    assert "damping raised, 2 times. Use more tokens." in words
    assert "dead inputs, 1 time. Calibrate on more text." in words
    assert "x.9.fc 3 of 64 inputs." in words
    assert "1 tensor: embedding" in words
    assert data["command"] in words


def test_layers_are_sorted_by_their_distance_to_the_limit(tmp_path):
    names = {"a.0.x": 0.4, "a.1.x": 0.9, "a.2.x": None, "a.3.x": 0.5}
    data = record(layers=[layer(name, above=above) for name, above in names.items()])
    words = written(tmp_path, data).words()
    words = words[words.index("All 4 quantized layers") :]
    assert sorted(names, key=words.index) == ["a.1.x", "a.3.x", "a.0.x", "a.2.x"]


def test_measures_are_shown_with_their_errors(tmp_path):
    words = written(tmp_path, record(measures=measures())).words()
    for shown in ("6.71 ± 0.13", "6.21 ± 0.12", "0.0713 ± 0.0012", "91.20 ± 0.12 %", "6.20", "hellaswag, acc 0.293"):
        assert shown in words


def test_without_a_reference_only_perplexity_is_shown(tmp_path):
    words = written(tmp_path, record(measures=measures() | {"divergence": None})).words()
    assert "6.71 ± 0.13" in words
    assert "original" not in words


def test_budget_counts_bits_of_what_layers_store_and_names_what_stayed(tmp_path):
    words = written(tmp_path, record()).words()
    weights = 3 * (64 * 64 + 2 * 96 * 64)
    for shown in (
        f"codes 18.4 kB 0.6 % {8 * 18_432 / weights:.3f}",
        f"kept_columns (side-car) 240 B <0.1 % {8 * 240 / weights:.3f}",
        "left_signs (transform) 96.0 B",
        "all files of weights 3.10 MB 100 % 3.250",
        "model.embed_tokens.weight 2.00 MB 64.5 %",
        "other tensors 2.04 kB",
    ):
        assert shown in words


def test_divergence_of_tokens_is_drawn_over_the_decades_it_spans(tmp_path):
    page = written(tmp_path, record(measures=measures()))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    figure = html[html.index("<h2>Divergence token by token") : html.index("<h2>Distance to the limit")]
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', figure)]
    assert heights == [round(100 * count / 800, 2) for count in (3, 700, 800, 100, 11, 2)]
    assert "0.001 0.01 0.1 1" in " ".join(re.findall(r"<span>([\d.]+)</span>", figure))
    assert "Divergence token by token" in page.words()


def test_worst_layers_show_how_weights_and_errors_are_spread(tmp_path):
    names = [f"a.{i}.x" for i in range(5)]
    data = record(layers=[layer(name, above=i / 10) for i, name in enumerate(names)])
    words = written(tmp_path, data).words()
    worst = words[words.index("Weights and errors where") : words.rindex("Loss by layer")]
    assert [name for name in names if name in worst] == names[2:]
    assert worst.index(names[4]) < worst.index(names[3])
    assert "0.0625" in worst


def test_texts_are_marked_from_where_they_part(tmp_path):
    words = written(tmp_path, record(continuations=continuations())).words()
    assert "def area(r):" in words
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall("<mark>(.*?)</mark>", html) == ["3 * r"]


def test_nothing_given_is_read_as_markup(tmp_path):
    data = record(
        command=HOSTILE,
        recipe_name=HOSTILE,
        recipe={"name": HOSTILE},
        citations=[HOSTILE],
        continuations=[{"prompt": HOSTILE, "original": HOSTILE, "quantized": f"a{HOSTILE}"}],
        layers=[layer(HOSTILE, outcomes=[outcome(HOSTILE, HOSTILE, HOSTILE)])],
        left_alone=[{"name": HOSTILE, "shape": [1], "reason": HOSTILE}],
        measures=measures() | {"text": HOSTILE, "tasks": {HOSTILE: {HOSTILE: {"mean": 0.5, "error": None}}}},
    )
    page = written(tmp_path, data)
    assert page.elements.count("script") == 1
    assert "".join(page.text).count(HOSTILE) >= 16


def test_long_names_may_go_on_in_the_next_line_and_numbers_may_not():
    shown = _breakable("a.b_c/Ldlq(damping=0.01, x=<b>)")
    assert shown == "a.<wbr>b_<wbr>c/<wbr>Ldlq(<wbr>damping=0.01, x=&lt;b&gt;)"
    assert _breakable("rounder=Ldlq") == "rounder=<wbr>Ldlq"


def test_pages_need_nothing_from_outside(tmp_path):
    write_report(record(measures=measures()), tmp_path)
    assert_nothing_from_outside((tmp_path / "report.html").read_text(encoding="utf-8"))
    demo_report(rows(), {"original": "abc"}, tmp_path / "demo.html")
    assert_nothing_from_outside((tmp_path / "demo.html").read_text(encoding="utf-8"))


def test_same_record_same_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_report(record(), tmp_path / folder)
        demo_report(rows(), {"original": "abc"}, tmp_path / folder / "demo.html")
    for name in ("report.json", "report.html", "demo.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_demo_shows_every_row_and_marks_where_texts_part(tmp_path):
    demo_report(rows(), {"original": "return <b>", "rtn": "return None", "same": "return <b>"}, tmp_path / "demo.html")
    html = (tmp_path / "demo.html").read_text(encoding="utf-8")
    words = Page(html).words()
    for row in rows():
        assert f"{row['recipe']} {row['bits']} {row['bits_per_weight']}" in words
    assert re.findall("<mark>(.*?)</mark>", html) == ["None"]
    figure = html[html.index("<svg") : html.index("</svg>")]
    assert re.search(r">\s*rtn\s*<", figure)
    assert not re.search(r">\s*original\s*<", figure)


def test_figure_names_recipes_as_they_are(tmp_path):
    hostile = [dict(row, recipe=name) for row, name in zip(rows()[2:], ("_rtn", "$a$", "<b>", "optq"), strict=True)]
    demo_report(hostile, {}, tmp_path / "demo.html")
    page = Page((tmp_path / "demo.html").read_text(encoding="utf-8"))
    assert "b" not in page.elements
    svg = "".join(page.text)
    svg = svg[: svg.index("All results")]
    for name in ("_rtn", "$a$", "<b>", "optq"):
        assert name in svg


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_figure_as_a_file(tmp_path, suffix, start):
    path = tmp_path / f"pareto.{suffix}"
    pareto_figure(rows(), path)
    first = path.read_bytes()
    assert first.startswith(start)
    pareto_figure(rows(), path)
    assert path.read_bytes() == first


def test_page_of_a_run_without_calibration(tmp_path):
    none = record()["calibration"] | {"samples": 0, "tokens": 0}
    assert "none: the recipe reads no text; seed 0" in written(tmp_path, record(calibration=none)).words()


def test_page_of_a_run_that_quantized_nothing(tmp_path):
    size = record()["size"] | {"parts": [part for part in parts() if part["part"] == "not quantized"]}
    words = written(tmp_path, record(layers=[], size=size)).words()
    assert "All 0 quantized layers" in words
    assert "every layer was solved as the recipe says" in words


def test_loss_to_nearest_stands_before_the_rounders(tmp_path):
    old = {key: value for key, value in layer("old").items() if key != "nearest_relative_loss"}
    data = [layer("scalar", relative_loss=0.02), layer("jointly") | {"nearest_relative_loss": None}, old]
    write_report(record(layers=data), tmp_path)
    words = Page((tmp_path / "report.html").read_text(encoding="utf-8")).words()
    for name, shown in (("scalar", "3.00 % 2.00 %"), ("jointly", ". 1.00 %"), ("old", ". 1.00 %")):
        assert re.search(f"{name} 64 . 64 optq 3.25 0.50 {shown}", words)


def test_limits_of_wide_layers_are_said_to_be_bounds(tmp_path):
    texts = {}
    for inputs in (1024, 1025):
        write_report(record(layers=[layer("narrow"), layer("wide", (64, inputs))]), tmp_path)
        texts[inputs] = Page((tmp_path / "report.html").read_text(encoding="utf-8")).words()
    assert "For the 1 layer of 2 with more than 1024 inputs the limit shown is a bound from below" in texts[1025]
    assert "a bound from below" not in texts[1024]
