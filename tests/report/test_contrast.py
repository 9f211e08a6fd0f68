"""Text can be read on everything it stands on: WCAG's contrast of 4.5 (AA), light, dark and in print."""

import re
from importlib.resources import files

import pytest

PAGE = files("lowbit.report").joinpath("templates/page.html").read_text(encoding="utf-8")
THEMES = dict(zip(("light", "dark", "print"), re.findall(r":root \{(.*?)\}", PAGE, re.DOTALL), strict=True))
TEXT_ON = {
    "ink": ("page", "card", "cool", "warm", "mark"),
    "soft": ("page", "card"),
    "accent": ("page",),
}


def luminance(colour):
    digits = colour.lstrip("#")
    parts = [digits[i : i + 2] for i in (0, 2, 4)] if len(digits) == 6 else [2 * digit for digit in digits]
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in (int(p, 16) / 255 for p in parts)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out(theme):
    colours = dict(re.findall(r"--(\w+): (#\w+);", THEMES[theme]))
    low = {
        (ink, ground): round(contrast(colours[ink], colours[ground]), 2)
        for ink, grounds in TEXT_ON.items()
        for ground in grounds
        if contrast(colours[ink], colours[ground]) < 4.5
    }
    assert low == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_scale_of_heat_runs_in_lightness_too(theme):
    """So that it is read without seeing hues."""
    colours = dict(re.findall(r"--(\w+): (#\w+);", THEMES[theme]))
    assert contrast(colours["cool"], colours["warm"]) > 1.5
