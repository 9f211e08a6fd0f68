"""Find the Williamson matrices that `lowbit.core.hadamard` needs and write them to src/lowbit/core/williamson.npz.

Four symmetric +-1 sequences of length n (first rows of circulants) are wanted whose power spectra sum to 4 n at every
frequency, that is, whose periodic autocorrelations sum to zero at every shift but 0. Candidates are those sequences
whose own spectrum stays under 4 n; pairs of them meet in the middle through a hash that is linear in autocorrelation.
n = 43 has 2^21 symmetric sequences; as Williamson did, only those invariant under a subgroup of the multipliers
modulo n are tried. Takes 20 seconds; the result does not depend on the machine.
"""

import math
from pathlib import Path

import numpy as np

# n: order of the subgroup of multipliers (modulo n and sign) that the sequences are invariant under.
WANTED = {23: 1, 29: 1, 43: 3}
TARGET = Path(__file__).parents[1] / "src" / "lowbit" / "core" / "williamson.npz"


def multipliers(n: int, order: int) -> set[int]:
    """A cyclic subgroup of the units modulo n and sign, of the given order."""
    for unit in (u for u in range(1, n) if math.gcd(u, n) == 1):
        group, x = {1}, unit
        while min(x, n - x) != 1:
            group.add(min(x, n - x))
            x = x * unit % n
        if len(group) == order:
            return group
    raise SystemExit(f"no subgroup of order {order} modulo {n}")


def candidates(n: int, group: set[int]) -> np.ndarray:
    """All symmetric +-1 sequences, invariant under the group, with x_0 = 1 and spectrum at most 4 n: [count, n]."""
    orbits = {frozenset(i * g % n for g in group) | {-i * g % n for g in group} for i in range(1, n)}
    ordered = sorted(orbits, key=min)
    sequences = np.ones((1 << len(ordered), n), np.int8)
    for bit, orbit in enumerate(ordered):
        sequences[:, sorted(orbit)] = 1 - 2 * (np.arange(len(sequences))[:, None] >> bit & 1)
    spectra = np.fft.rfft(sequences, axis=1).real ** 2
    return sequences[(spectra <= 4 * n + 1e-6).all(1)]


def williamson(n: int, order: int) -> np.ndarray:
    """Four rows [4, n]."""
    rows = candidates(n, multipliers(n, order))
    spectra = np.fft.rfft(rows, axis=1).real ** 2
    correlations = np.rint(np.fft.irfft(spectra, n=n, axis=1)).astype(np.int64)[:, 1 : n // 2 + 1]
    key = correlations @ np.random.RandomState(0).randint(1, 2**50, correlations.shape[1])
    i, j = np.triu_indices(len(rows))
    sums = key[i] + key[j]
    order_of = np.argsort(sums, kind="stable")
    ordered = sums[order_of]
    at = np.searchsorted(ordered, -ordered).clip(max=len(ordered) - 1)
    for hit in np.flatnonzero(ordered[at] == -ordered):
        a, b = order_of[hit], order_of[at[hit]]
        four = [i[a], j[a], i[b], j[b]]
        if (correlations[four].sum(0) == 0).all():
            return rows[four]
    raise SystemExit(f"no Williamson matrices of order {n} among {len(rows)} candidates")


def main() -> None:
    found = {str(n): williamson(n, order) for n, order in WANTED.items()}
    np.savez_compressed(TARGET, **found)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
