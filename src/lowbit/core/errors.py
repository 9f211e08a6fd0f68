"""Two kinds of error a user can meet, told apart by what he should do next.

Messages read `Ldlq(damping=-1): must be >= 0. Use 0.01.`: what is wrong, what was given, what to do.
"""


class LowbitError(Exception):
    """The work failed although the request made sense (exit code 1)."""

    exit_code = 1


class BadRequest(LowbitError, ValueError):
    """The request cannot be carried out as given: an input, an option or a pair of parts (exit code 2)."""

    exit_code = 2


def divisors_near(size: int, whole: int) -> str:
    """The two divisors of `whole` that are nearest to `size`, to be offered in its place: "64 or 96"."""
    fitting = [divisor for divisor in range(1, whole + 1) if whole % divisor == 0]
    return " or ".join(map(str, sorted(sorted(fitting, key=lambda divisor: abs(divisor - size))[:2])))


def require(condition: bool, message: str) -> None:
    """Raise `BadRequest(message)` unless the condition holds."""
    if not condition:
        raise BadRequest(message)
