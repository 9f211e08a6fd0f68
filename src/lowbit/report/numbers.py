"""Numbers as people read them."""

import math
from collections.abc import Mapping
from typing import Any


def size(nbytes: float) -> str:
    """Bytes in decimal units, three digits: 4.31 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{digits(nbytes)} {unit}"
        nbytes /= 1000
    return f"{digits(nbytes)} TB"


def count(number: float) -> str:
    """3.95 million."""
    for unit in ("", " thousand", " million"):
        if number < 999.5:
            return f"{digits(number)}{unit}"
        number /= 1000
    return f"{digits(number)} billion"


def duration(seconds: float) -> str:
    """0.42 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{digits(seconds, 2)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rough_duration(seconds: float) -> str:
    """To two digits, for what is only foreseen: 42 s, 3.1 min, 2.2 h, 16 days."""
    for unit, factor in (("s", 60), ("min", 60), ("h", 24)):
        if seconds < 1.5 * factor:
            return f"{digits(seconds, 2)} {unit}"
        seconds /= factor
    return f"{digits(seconds, 2)} days"


def digits(value: float, significant: int = 3) -> str:
    """So many significant digits, without an exponent between 1e-4 and 1e6."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{significant - 1}e}".partition("e")[2])  # of the rounded value: 9.996 is 10.0
    if not -4 <= exponent < 6:
        return f"{value:.{significant - 1}e}"
    return f"{value:,.{max(0, significant - 1 - exponent)}f}"


def share(value: float) -> str:
    """A fraction of one as a percentage: 0.0123 is 1.23 %."""
    return f"{digits(100 * value)} %"


def tenths(value: float) -> str:
    """A part of a whole as a percentage with one decimal, so that parts line up: 4.3 %, <0.1 %."""
    return "<0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def estimate(data: Mapping[str, Any]) -> str:
    """A mean with its standard error, written to the error's second digit: 4.127 ± 0.023."""
    mean, error = data["mean"], data["error"]
    if not error:
        return digits(mean, 4)
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:,.{places}f} ± {error:.{places}f}" if places <= 6 else f"{digits(mean, 4)} ± {digits(error, 2)}"


def estimated_share(data: Mapping[str, Any]) -> str:
    """A fraction of one with its standard error, as a percentage: 85.46 ± 0.38 %."""
    error = data["error"]
    return f"{estimate({'mean': 100 * data['mean'], 'error': None if error is None else 100 * error})} %"
