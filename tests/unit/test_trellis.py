"""The trellis codes: value tables are the published ones, storage is k bits a weight, decoding reads windows."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lowbit.codes import trellis_values
from lowbit.codes.trellis import BitshiftTrellis, TailBiting
from lowbit.codes.trellis_values import value_table
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.layer import quantize_layer
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.packing import pack, unpack
from lowbit.recipes import exl3

SMALL = BitshiftTrellis(L=10, k=2, tile=(32, 1), values="gaussian")
CODES = {
    "open": SMALL,
    "closed": TailBiting(SMALL),
    "short seam": TailBiting(SMALL, window=8),
    "two columns": TailBiting(BitshiftTrellis(L=10, k=2, tile=(16, 2))),
    "square": TailBiting(BitshiftTrellis(L=10, k=2, tile=(8, 8), values="1mad")),
    "one scale": TailBiting(BitshiftTrellis(L=10, k=2, tile=(8, 4), scales="tensor", scale_dtype="float32")),
    "1.5 bits": TailBiting(BitshiftTrellis(L=10, k=1.5, V=2, tile=(16, 2), values="gaussian")),
    "3 bits": BitshiftTrellis(L=9, k=3, tile=(8, 4), values="gaussian", loading=0.9),
    "fragments": TailBiting(BitshiftTrellis(L=10, k=2, tile=(16, 16), scales="tensor", order="fragment")),
    "no scale": BitshiftTrellis(L=12, k=3, tile=(16, 16), values="exl3-mcg", scales="unit", order="fragment"),
}


def gaussian(n: int, k: int, dtype: torch.dtype = torch.float32) -> LayerProblem:
    weight = torch.randn(n, k, generator=stream(0, "trellis", f"{n} {k}"), dtype=dtype)
    return LayerProblem(weight, torch.eye(k, dtype=torch.float64))


def encoded(code: Code, problem: LayerProblem) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    side = dict(code.fit(problem))
    return *code.encode(problem.weight, side, torch.arange(problem.shape[1])), side


def error(code: Code, problem: LayerProblem) -> float:
    """Squared error over the squared weight, the scale refitted."""
    w, w_hat = problem.weight, encoded(code, problem)[1]
    return 1 - float((w * w_hat).sum() ** 2 / (w_hat.square().sum() * w.square().sum()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_packed_codes_decode_to_what_was_encoded(code: Code, dtype: torch.dtype) -> None:
    problem = gaussian(32, 32, dtype)
    codes, values, side = encoded(code, problem)
    field = code.fields(problem.shape)["codes"]
    packed = pack(codes, field)
    assert values.dtype == dtype
    assert packed.numel() == field.nbytes
    decoded = code.decode(unpack(packed, field), side, torch.arange(32))
    assert torch.equal(decoded.to(dtype), values)
    columns = torch.arange(16, 32)
    tail = code.decode(codes[:, 16 // code.tile[1] :], side, columns)
    assert torch.equal(tail.to(dtype), values[:, 16:])


@pytest.mark.parametrize(("scales", "extra"), [("row", 16 / 512), ("tensor", 16 / (256 * 512))])
@pytest.mark.parametrize(("k", "dimension"), [(1, 1), (2, 1), (1.5, 2), (2.5, 2), (4, 1)])
def test_a_weight_takes_k_bits_and_its_share_of_a_scale(k: float, dimension: int, scales, extra: float) -> None:
    for tile in ((256, 1), (128, 2), (64, 4), (16, 16)):
        part = BitshiftTrellis(L=12, k=k, V=dimension, tile=tile, values="gaussian", scales=scales)
        for code in (part, TailBiting(part)):
            assert bits_per_weight(code.fields((256, 512)), (256, 512)) == pytest.approx(k + extra)


@pytest.mark.parametrize("code", [CODES["open"], CODES["closed"], CODES["1.5 bits"]], ids=str)
def test_states_are_windows_of_the_stream(code: Code) -> None:
    part = code.trellis if isinstance(code, TailBiting) else code
    codes, values, side = encoded(code, gaussian(32, 2))
    bits, steps = part.step_bits, codes.shape[-1]
    text = "".join(format(int(c), f"0{bits}b") for c in codes[0, 0])
    before = text if isinstance(code, TailBiting) else "0" * part.L
    table = value_table(part.values, part.L, part.V, part.step_bits)
    for step in (0, 1, steps // 2, steps - 1):
        window = (before + text)[: len(before) + (step + 1) * bits][-part.L :]
        column, row = divmod(step * part.V, part.tile[0])
        rows = slice(row, row + part.V)
        assert torch.equal(values[rows, column], table[int(window, 2)] * side["scale"][rows, 0].float())


def test_a_tile_is_filled_column_by_column() -> None:
    """The last steps of an open path change only the last column."""
    code = BitshiftTrellis(L=10, k=2, tile=(8, 4), values="gaussian")
    codes, values, side = encoded(code, gaussian(8, 4))
    changed = codes.clone()
    changed[..., -8:] ^= 3
    differs = code.decode(changed, side, torch.arange(4)) != values
    assert not bool(differs[:, :3].any())
    assert bool(differs[:, 3].all())


def test_outputs_are_filled_up_to_whole_tiles() -> None:
    code, problem = CODES["closed"], gaussian(45, 3)
    codes, values, side = encoded(code, problem)
    assert codes.shape == (2, 3, 32)
    assert values.shape == (45, 3)
    assert torch.equal(code.decode(codes, side, torch.arange(3)), values)


@pytest.mark.parametrize("weight", [torch.zeros(32, 2), torch.full((32, 2), 1e-6), torch.eye(32)[:, :2] * 1e4])
def test_odd_weights_stay_finite(weight: Tensor) -> None:
    _, values, _ = encoded(CODES["closed"], LayerProblem(weight, torch.eye(2, dtype=torch.float64)))
    assert bool(values.isfinite().all())
    assert float((values - weight).abs().max()) <= float(weight.abs().max()) + 1e-5


def test_weights_beyond_float16_are_refused() -> None:
    problem = LayerProblem(torch.full((32, 1), 1e6), torch.eye(1, dtype=torch.float64))
    with pytest.raises(BadRequest, match="float32"):
        CODES["closed"].fit(problem)


def test_distortion_is_between_the_limit_and_the_scalar_grid() -> None:
    """At the same rate: the limit 2^-2k, a closed path, one that starts at zero, the Lloyd-Max grid."""
    problem = gaussian(256, 48)
    for k, scalar in ((1, 0.3634), (2, 0.1175)):
        part = BitshiftTrellis(L=10, k=k, tile=(128, 1), values="gaussian")
        closed, opened = error(TailBiting(part), problem), error(part, problem)
        assert 4.0**-k < closed < opened < scalar
        assert closed < 0.8 * scalar


def test_more_states_are_better() -> None:
    problem = gaussian(256, 48)
    errors = [error(TailBiting(BitshiftTrellis(L, 2, tile=(128, 1), values="gaussian")), problem) for L in (9, 10, 11)]
    assert errors == sorted(errors, reverse=True)


def test_published_value_tables() -> None:
    """First states by hand, and the counts of distinct values at L = 16."""
    one_mad = value_table("1mad", 16, 1, 2)[:, 0]
    assert float(one_mad[0]) == pytest.approx((0x04 + 0x91 + 0x36 + 0x7A - 510) / 147.800537)
    mul1 = value_table("mul1", 16, 1, 2)[:, 0]
    assert float(mul1[1]) == pytest.approx((0x83 + 0xDC + 0xD1 + 0x2D - 510) / 147.800537)
    assert len(one_mad.unique()) == 908
    hyb = value_table("hyb", 16, 2, 2)
    assert len(hyb.unique(dim=0)) == 1024
    hashed = 300 * 301
    twin = next(s for s in range(65536) if (s * (s + 1) ^ hashed) & 0xFFC0 == 0x8000)
    assert torch.equal(hyb[300] * torch.tensor([-1.0, 1.0]), hyb[twin])
    three = value_table("3inst", 16, 1, 2)[:, 0] * 1.24371
    halves = torch.tensor([((64248484 >> shift & 0x8FFF) ^ 0x3B60) for shift in (0, 16)], dtype=torch.int32)
    assert float(three[0]) == pytest.approx(float(halves.to(torch.int16).view(torch.float16).sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "dimension", "fingerprint"),
    [
        ("1mad", 1, -129699703),
        ("mul1", 1, 26959797),
        ("3inst", 1, 3018107),
        ("hyb", 2, -419320692),
        ("gaussian", 1, -113393425),
        ("strata", 1, 10520881),
    ],
)
def test_values_are_standard_and_fixed(name: str, dimension: int, fingerprint: int) -> None:
    table = value_table(name, 16, dimension, 2)
    assert float(table.mean()) == pytest.approx(0, abs=0.01)
    assert float(table.square().mean()) == pytest.approx(1, abs=0.01)
    # Stored weights hang on these numbers: they may never change.
    index = torch.arange(table.numel()) % 251 + 1
    assert int(((table.double() * 4096).round().long().flatten() * index).sum()) == fingerprint


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_strata_are_spread_over_predecessors_and_successors(bits: int) -> None:
    """The states that share an edge, before or after a step, have one number in each stratum."""
    table, branches = value_table("strata", 10, 1, bits)[:, 0], 1 << bits
    stratum = table.argsort(stable=True).argsort() * branches // len(table)
    for together in (stratum.view(branches, -1).T, stratum.view(-1, branches)):
        assert torch.equal(together.sort(1).values, torch.arange(branches).expand(len(together), -1))


def test_strata_beat_independent_numbers() -> None:
    problem = gaussian(256, 48)
    for k in (1, 2):
        plain, strata = (
            error(TailBiting(BitshiftTrellis(L=10, k=k, tile=(128, 1), values=values)), problem)
            for values in ("gaussian", "strata")
        )
        assert strata < 0.98 * plain


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"L": 2, "k": 3}, "Raise L"),
        ({"L": 30}, "1 to 20"),
        ({"k": 1.5}, "whole number"),
        ({"k": 9}, "from 1 to 8"),
        ({"k": 0}, "from 1 to 8"),
        ({"V": 0}, "at least 1"),
        ({"V": 3, "values": "gaussian"}, "V must divide"),
        ({"tile": (0, 4)}, "V must divide"),
        ({"tile": (7, 1)}, "larger tile"),
        ({"values": "gauss"}, "gaussian"),
        ({"V": 2}, "hyb has V=2"),
        ({"L": 6, "k": 4, "values": "strata"}, "L >= 2 k V"),
        ({"scales": "column"}, "tensor"),
        ({"scale_dtype": "int8"}, "float32"),
        ({"order": "rows"}, "fragment"),
        ({"order": "fragment", "scales": "tensor"}, "tile of \\(16, 16\\)"),
        ({"order": "fragment", "tile": (16, 16)}, "no scales of their own"),
        ({"loading": 0.0}, "above 0"),
    ],
    ids=str,
)
def test_impossible_trellises_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        BitshiftTrellis(**settings)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (torch.randn(512, 1), "not \\[1024, 1\\]"),
        (torch.full((1024, 1), torch.nan), "finite"),
        (torch.ones(1024, 1), "mean 1"),
        (3 * torch.randn(1024, 1), "deviation"),
    ],
    ids=["length", "nan", "constant", "variance"],
)
def test_unfit_values_are_refused(monkeypatch: pytest.MonkeyPatch, table: Tensor, said: str, request) -> None:
    name = f"unfit {request.node.name}"
    monkeypatch.setitem(trellis_values.VALUES, name, lambda length, dimension, bits: table.numpy())
    with pytest.raises(BadRequest, match=said):
        BitshiftTrellis(L=10, values=name)


@pytest.mark.parametrize(
    ("part", "shape", "said"),
    [
        (BitshiftTrellis(tile=(64, 4)), (64, 6), "128 x 2"),
        (BitshiftTrellis(tile=(16, 16)), (64, 27), "256 x 1"),
        (BitshiftTrellis(tile=(256, 1), scales="tensor"), (384, 8), "128 x 2"),
        (BitshiftTrellis(tile=(256, 1), scales="tensor"), (7, 8), 'scales="row"'),
    ],
    ids=str,
)
def test_layers_that_do_not_fit_are_refused_with_what_would(part: BitshiftTrellis, shape, said: str) -> None:
    for code in (part, TailBiting(part)):
        with pytest.raises(BadRequest, match=said):
            code.check(shape)


def test_a_seam_needs_a_window() -> None:
    with pytest.raises(BadRequest, match="window"):
        TailBiting(SMALL, window=0)


def test_a_fragment_lies_as_a_tensor_core_holds_it() -> None:
    """Each lane of 32: inputs 2 (lane mod 4) + 0, 1, 8, 9 of output lane div 4, then of the output 8 further."""
    places = [(2 * (lane % 4) + near, lane // 4 + far) for lane in range(32) for far in (0, 8) for near in (0, 1, 8, 9)]
    code = BitshiftTrellis(L=16, k=2, tile=(16, 16), values="exl3-mul1", scales="unit", order="fragment")
    codes = torch.randint(0, 4, (1, 1, 256), generator=stream(0, "codes"), dtype=torch.uint8)
    decoded, state = code.decode(codes, {}, torch.arange(16)), 0
    for (at_input, at_output), bits in zip(places, codes.flatten().tolist(), strict=True):
        state = (state << 2 | bits) & 0xFFFF
        word = state * 0x83DCD12D & 0xFFFFFFFF
        value = (sum(word.to_bytes(4, "little")) * 1774 - 905216) / 2**18
        assert float(decoded[at_output, at_input]) == value


def test_values_of_exl3_are_sums_of_two_halves() -> None:
    states = torch.tensor([0, 1, 77, 65535])
    for name, multiplier, increment in (("mcg", 0xCBAC1FED, 0), ("3inst", 89226354, 64248484)):
        words = [((s * multiplier + increment) & 0x8FFF8FFF) ^ 0x3B603B60 for s in states.tolist()]
        halves = torch.tensor([[word & 0xFFFF, word >> 16 & 0xFFFF] for word in words], dtype=torch.uint16)
        expected = halves.view(torch.float16).float().sum(1)
        assert torch.equal(value_table(f"exl3-{name}", 16, 1, 2)[states, 0], expected)


def test_a_fragment_is_encoded_at_once() -> None:
    code = BitshiftTrellis(L=10, k=2, tile=(16, 16), scales="tensor", order="fragment")
    with pytest.raises(BadRequest, match="fragment is encoded at once"):
        TailBiting(code, joint=1)
    assert TailBiting(code).with_tile((12, 21), "tensor").trellis.order == "columns"


def test_every_bit_of_exl3_counts() -> None:
    """Weights have a size for each number of bits; with one for all, 8 bits would lose as much as 4."""
    x = torch.randn(512, 128, generator=stream(0, "x"), dtype=torch.float64)
    problem = LayerProblem(gaussian(128, 128).weight, x.T @ x / 512)
    losses = [quantize_layer(problem, exl3(bits, L=10), stream(0, "r")).stats["loss"] for bits in (2, 4, 6, 8)]
    assert all(after < before / 8 for before, after in pairwise(losses))
