"""Numbers as people read them."""

import pytest

from lowbit.report import numbers


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (numbers.size, 0, "0 B"),
        (numbers.size, 999, "999 B"),
        (numbers.size, 999_600, "1.00 MB"),
        (numbers.size, 140e9, "140 GB"),
        (numbers.size, 2.5e12, "2.50 TB"),
        (numbers.count, 260_032, "260 thousand"),
        (numbers.count, 8.03e9, "8.03 billion"),
        (numbers.duration, 0.0421, "0.042 s"),
        (numbers.duration, 9.96, "10 s"),
        (numbers.duration, 59.7, "1 min 0 s"),
        (numbers.duration, 7800, "2 h 10 min"),
        (numbers.rough_duration, 42, "42 s"),
        (numbers.rough_duration, 5000, "83 min"),
        (numbers.rough_duration, 7800, "2.2 h"),
        (numbers.rough_duration, 1.4e6, "16 days"),
        (numbers.digits, 0.0, "0"),
        (numbers.digits, 0.00001234, "1.23e-05"),
        (numbers.digits, 0.001234, "0.00123"),
        (numbers.digits, 123456, "123,456"),
        (numbers.digits, float("inf"), "inf"),
        (numbers.share, 0.0123, "1.23 %"),
        (numbers.estimate, {"mean": 4.1271, "error": 0.0234}, "4.127 ± 0.023"),
        (numbers.estimate, {"mean": 1234.5, "error": 56.0}, "1,234 ± 56"),
        (numbers.estimate, {"mean": 1.5e-9, "error": 2e-10}, "1.500e-09 ± 2.0e-10"),
        (numbers.estimate, {"mean": 0.5, "error": None}, "0.5000"),
        (numbers.estimate, {"mean": 0.0, "error": 0.0}, "0"),
    ],
)
def test_shown(function, value, shown):
    assert function(value) == shown
