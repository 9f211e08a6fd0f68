"""The laws: each a plain function that raises AssertionError where a part breaks it.

The tests apply them to the rows of `laws.tables`; `test_laws_can_fail.py` applies them to parts that are broken on
purpose.
"""

import copy
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import numba
import torch
from torch import Tensor

from laws.problems import together
from lowbit.core.errors import BadRequest
from lowbit.core.fields import Array, Bits, Field, bits_per_weight
from lowbit.core.layer import QuantizedLayer, quantize_layer, restore_layer
from lowbit.core.maps import LinearMap
from lowbit.core.parts import GRADIENTS, Code, Observed, Rounder, SideCar, Statistic, Transform
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.core.recipe import Recipe
from lowbit.core.records import Rounded
from lowbit.core.stored import Relaying, codes_from_fields, codes_to_fields
from lowbit.packing import pack, unpack
from lowbit.packing.dense import is_legal
from lowbit.rounding import Nearest
from lowbit.statistics import SecondMoment
from lowbit.transforms import NoTransform


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree within `tolerance` of the larger one's norm."""
    return float((a - b).norm()) <= tolerance * max(float(a.norm()), float(b.norm()), 1e-30)


def tolerance_of(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-11


@contextmanager
def threads(count: int):
    """Run the body on `count` threads of torch and of numba (fewer where the machine has fewer)."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


@contextmanager
def unmodified(*tensors: Tensor | None):
    """Assert that the body leaves the tensors as they were."""
    before = [None if tensor is None else tensor.clone() for tensor in tensors]
    yield
    for old, new in zip(before, tensors, strict=True):
        assert old is None or torch.equal(old, new), "an input tensor was modified"


# Statistics


def observed(statistic: Statistic, records: list[Observed]) -> object:
    """The state of having seen records of everything; gradients come in records of their own, as they do in a run."""
    state = statistic.init(records[0]["inputs"].shape[1])
    for record in records:
        for part in (statistic.reads - GRADIENTS, *({name} for name in statistic.reads & GRADIENTS)):
            if part:
                with unmodified(*record.values()):
                    state = statistic.update(state, {name: record[name] for name in part})
    return state


def close_problems(a: LayerProblem, b: LayerProblem, tolerance: float) -> bool:
    rows = a.row_hessian is None or close(a.row_hessian, b.row_hessian, tolerance)
    alike = a.sensitivity is None or close(a.sensitivity, b.sensitivity, tolerance)
    return rows and alike and close(a.hessian, b.hessian, tolerance) and close(a.weight, b.weight, tolerance)


def law_merge_is_one_pass(statistic: Statistic, records: list[Observed], weight: Tensor) -> None:
    """Merging the states of two runs equals one run over both, for unequal runs and in either order."""
    tolerance = 1e-12 if weight.dtype == torch.float64 else 1e-6
    whole = observed(statistic, records)
    for a, b in ((records[:3], records[3:]), (records[3:], records[:3])):
        state = statistic.merge(observed(statistic, a), observed(statistic, b))
        assert statistic.tokens(state) == statistic.tokens(whole)
        assert close_problems(statistic.problem(state, weight)[0], statistic.problem(whole, weight)[0], tolerance)


def law_batches_do_not_matter(statistic: Statistic, records: list[Observed], weight: Tensor) -> None:
    """Windows one by one or all at once: equal to 1e-12 in float64, to a few ulp of the inputs in float32."""
    tolerance = 1e-12 if weight.dtype == torch.float64 else 1e-5
    whole = statistic.problem(observed(statistic, [together(records)]), weight)[0]
    for size in (1, 3, len(records) - 1):
        batches = [together(records[at : at + size]) for at in range(0, len(records), size)]
        split = statistic.problem(observed(statistic, batches), weight)[0]
        assert close_problems(split, whole, tolerance)


def law_hessians_are_symmetric_psd(statistic: Statistic, records: list[Observed], weight: Tensor) -> None:
    problem = statistic.problem(observed(statistic, records), weight)[0]
    assert problem.weight.dtype == weight.dtype
    tolerance = 1e-12 if weight.dtype == torch.float64 else 1e-6
    for hessian in (problem.hessian, problem.row_hessian):
        if hessian is not None:
            assert hessian.dtype == torch.float64
            assert torch.equal(hessian, hessian.T)
            values = torch.linalg.eigvalsh(hessian)
            assert values.min() >= -tolerance * values.max()


def law_no_tokens_is_said(statistic: Statistic, weight: Tensor) -> None:
    """A statistic that reads something but saw nothing gives a problem that can be solved, and says so."""
    with unmodified(weight):
        problem, outcomes = statistic.problem(statistic.init(weight.shape[1]), weight)
    assert bool(torch.isfinite(problem.hessian).all())
    assert torch.equal(problem.weight, weight)
    assert bool(outcomes) == bool(statistic.reads)
    assert all(outcome.remedy for outcome in outcomes)


# Maps and transforms


def law_map_is_linear(map: LinearMap, d: int) -> None:
    """inverse, transpose and the tags are true of the matrix the map stands for."""
    matrix = map.apply(torch.eye(d, dtype=torch.float64)).T
    x = torch.randn(3, 5, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    assert close(map.apply(x), x @ matrix.T, 1e-12)
    assert close(map.inverse().apply(map.apply(x)), x, 1e-12)
    assert close(map.transpose().apply(x), x @ matrix, 1e-12)
    assert close(map.inverse().transpose().apply(map.transpose().apply(x)), x, 1e-12)
    assert map.apply(x.float()).dtype == torch.float32
    if map.is_orthogonal:
        assert close(matrix @ matrix.T, eye, 1e-12)
    if map.is_diagonal:
        assert torch.equal(matrix, matrix.diagonal().diag())
    if map.is_permutation:
        assert torch.equal(matrix.sum(0), torch.ones(d, dtype=torch.float64))
        assert bool(((matrix == 0) | (matrix == 1)).all())
    for kin in (map.inverse(), map.transpose()):
        assert kin.is_orthogonal == map.is_orthogonal
        assert kin.is_diagonal == map.is_diagonal
        assert kin.is_permutation == map.is_permutation


def law_transform_preserves_function(transform: Transform, problem: LayerProblem) -> None:
    """y = L^-1 W' R x, and undoing the transform of W gives W (bit for bit where maps only permute)."""
    fitted = transform.fit(problem, stream(0, "law"))
    inner = fitted.forward(problem)
    x = torch.randn(9, problem.shape[1], generator=torch.Generator().manual_seed(1), dtype=problem.weight.dtype)
    tolerance = tolerance_of(problem.weight.dtype)
    assert inner.weight.dtype == problem.weight.dtype
    outputs = fitted.left.inverse().apply(fitted.right.apply(x) @ inner.weight.T)
    assert close(outputs, x @ problem.weight.T, tolerance)
    assert close(fitted.undo(inner.weight), problem.weight, tolerance)
    if fitted.left.is_permutation and fitted.right.is_permutation:
        assert torch.equal(fitted.undo(inner.weight), problem.weight)


def law_transform_preserves_loss(transform: Transform, problem: LayerProblem) -> None:
    """The loss of any w_hat in the new coordinates is that of undoing it, with G carried along."""
    n = problem.shape[0]
    rows = torch.eye(n, dtype=torch.float64) if problem.row_hessian is None else problem.row_hessian
    problem = LayerProblem(problem.weight.double(), problem.hessian.double(), rows)
    fitted = transform.fit(problem, stream(0, "law"))
    inner = fitted.forward(problem)
    w_hat = inner.weight + torch.randn(problem.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert math.isclose(inner.loss(w_hat), problem.loss(fitted.undo(w_hat)), rel_tol=1e-9, abs_tol=1e-12)
    assert torch.equal(inner.hessian, inner.hessian.T)


def law_transform_restores(transform: Transform, problem: LayerProblem) -> None:
    """The stored tensors are those declared, and make the same maps again."""
    fitted = transform.fit(problem, stream(0, "law"))
    fields, tensors = transform.fields(problem.shape), transform.tensors(fitted)
    assert fields.keys() == tensors.keys()
    for name, field in fields.items():
        law_field_holds(field, tensors[name])
    again = transform.restore(tensors, problem.shape)
    assert torch.equal(again.undo(problem.weight), fitted.undo(problem.weight))


# Codes and rounders


def law_missing_sensitivity_is_told_first(code: Code, problem: LayerProblem) -> None:
    """A code that cannot be fitted without the sensitivity of weights is refused before anything is gathered."""

    def refused(work: Callable[[], object]) -> bool:
        try:
            work()
        except BadRequest:
            return True
        return False

    told = refused(lambda: Recipe("law", SecondMoment(), NoTransform(), code, Nearest()).check(problem.shape))
    assert told == refused(lambda: code.fit(replace(problem, sensitivity=None)))


def law_encode_is_idempotent(code: Code, problem: LayerProblem) -> None:
    """Values that can be stored are stored as they are, and decoding gives what encoding returned, slab by slab."""
    side, every = code.fit(problem), torch.arange(problem.shape[1])
    codes, values = code.encode(problem.weight, side, every)
    assert values.dtype == problem.weight.dtype
    assert bool(torch.isfinite(values).all())
    assert torch.equal(code.decode(codes, side, every), values)
    again, same = code.encode(values, side, every)
    assert torch.equal(same, values)
    assert torch.equal(code.decode(again, side, every), values)
    middle = problem.shape[1] // 2 // code.tile[1] * code.tile[1]
    part_codes, part = code.encode(problem.weight[:, middle:].contiguous(), side, every[middle:])
    assert torch.equal(part, values[:, middle:])
    assert torch.equal(part_codes, codes[:, middle // code.tile[1] :])


def law_encode_is_nearest(code: Code, problem: LayerProblem) -> None:
    """No code that can be stored decodes nearer to the target than the one chosen, tile by tile."""
    side, every = code.fit(problem), torch.arange(problem.shape[1])
    codes, values = code.encode(problem.weight, side, every)
    bits = code.bits if isinstance(code, Relaying) else code.fields(problem.shape)["codes"].bits
    chosen = _tile_distances(values - problem.weight, code.tile)
    slack = 4 * torch.finfo(values.dtype).eps * (values.abs().max() + problem.weight.abs().max()) ** 2
    for other in range(2 ** min(bits, 8)):
        tried = code.decode(torch.full_like(codes, other), side, every)
        assert bool((_tile_distances(tried - problem.weight, code.tile) >= chosen - slack).all())


def _tile_distances(error: Tensor, tile: tuple[int, int]) -> Tensor:
    (n, k), (rows, columns) = error.shape, tile
    return error.square().view(n // rows, rows, k // columns, columns).sum((1, 3))


def law_codes_decode_to_w_hat(rounder: Rounder, code: Code, problem: LayerProblem) -> None:
    """What is stored is what was promised, bit for bit; everything is finite; inputs are left alone."""
    with unmodified(problem.weight, problem.hessian, problem.row_hessian):
        rounded = rounder.round(problem, code)
    assert rounded.w_hat.shape == problem.shape
    assert rounded.w_hat.dtype == problem.weight.dtype
    assert bool(torch.isfinite(rounded.w_hat).all())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in rounded.side.values())
    assert torch.equal(code.decode(rounded.codes, rounded.side, torch.arange(problem.shape[1])), rounded.w_hat)
    law_code_fields_hold(code, rounded, problem.shape)


def law_code_fields_hold(code: Code, rounded: Rounded, shape: tuple[int, int]) -> None:
    stored = {**rounded.side, **codes_to_fields(code, rounded.codes, rounded.side)}
    values = code.decode(codes_from_fields(code, stored, shape), rounded.side, torch.arange(shape[1]))
    assert torch.equal(values, rounded.w_hat)
    for name, field in code.fields(shape).items():
        law_field_holds(field, stored[name])


def law_field_holds(field: Field, tensor: Tensor) -> None:
    """A tensor keeps every bit of its values in the field declared for it."""
    assert tensor.numel() == math.prod(field.shape)
    if isinstance(field, Bits):
        assert torch.equal(tensor, tensor.round())
        assert int(tensor.min()) >= 0
        assert int(tensor.max()) < 2**field.bits
    else:
        assert torch.equal(tensor.to(field.dtype).to(tensor.dtype), tensor)


def law_identity_hessian_means_nearest(rounder: Rounder, nearest: Rounder, code: Code, weight: Tensor) -> None:
    """Where every direction costs the same, no rounder can do better than nearest, and none differs from it.

    Codes laid out otherwise than one by one may decode alike.
    """
    problem = LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64), None, weight.square())
    ours, plain = rounder.round(problem, code), nearest.round(problem, code)
    assert isinstance(code, Relaying) or torch.equal(ours.codes, plain.codes)
    assert torch.equal(ours.w_hat, plain.w_hat)


def law_feedback_pays(rounder: Rounder, nearest: Rounder, code: Code, tries: list[LayerProblem]) -> None:
    """On average over problems with correlated inputs, the proxy loss is no higher than that of rounding to nearest."""
    ours = sum(problem.relative_loss(rounder.round(problem, code).w_hat) for problem in tries)
    plain = sum(problem.relative_loss(nearest.round(problem, code).w_hat) for problem in tries)
    assert ours <= plain


def law_side_car_pays(side_car: SideCar, rounder: Rounder, code: Code, problem: LayerProblem) -> None:
    """A correction is no worse than the one that codes were rounded beside, is stored as declared, and is the same
    after restoring, dense or applied."""
    first = side_car.start(problem)
    w_hat = rounder.round(side_car.rest(problem, first), code).w_hat
    correction = side_car.fit(problem, first, w_hat)
    fields, tensors = side_car.fields(problem.shape), correction.tensors()
    assert fields.keys() == tensors.keys()
    for name, field in fields.items():
        law_field_holds(field, tensors[name])
    assert problem.loss(w_hat + correction.dense()) <= problem.loss(w_hat + first.dense()) * (1 + 1e-6) + 1e-12
    restored = side_car.restore(tensors, problem.shape)
    assert torch.equal(restored.dense(), correction.dense())
    x = torch.randn(5, problem.shape[1], generator=stream(0, "side-car"))
    torch.testing.assert_close(restored.apply(x), x @ restored.dense().T, rtol=1e-4, atol=1e-5)


# Recipes


def solve(recipe: Recipe, problem: LayerProblem) -> QuantizedLayer:
    return quantize_layer(problem, recipe, stream(0, "law"))


def stored_bytes(layer: QuantizedLayer) -> dict[str, Tensor]:
    """The tensors of a layer as a file holds them: packed, or of the declared type and shape."""
    fields = layer.recipe.fields(layer.shape)
    return {
        name: pack(tensor, fields[name])
        if isinstance(fields[name], Bits)
        else tensor.to(fields[name].dtype).reshape(fields[name].shape)
        for name, tensor in layer.tensors().items()
    }


def law_layer_survives_storage(layer: QuantizedLayer) -> None:
    """Packed, unpacked and restored, a layer dequantizes to the same float32 bits."""
    fields, stored = layer.recipe.fields(layer.shape), stored_bytes(layer)
    assert stored.keys() == fields.keys()
    for name, field in fields.items():
        law_field_holds(field, layer.tensors()[name])
        assert isinstance(field, Array) or is_legal(stored[name], field)
    opened = {n: unpack(t, fields[n]) if isinstance(fields[n], Bits) else t for n, t in stored.items()}
    again = restore_layer(layer.recipe, layer.shape, opened)
    assert torch.equal(again.dequantize(), layer.dequantize())
    assert bool(torch.isfinite(again.dequantize()).all())


def law_bits_are_counted(layer: QuantizedLayer) -> None:
    """Bits per weight are the bytes of what is stored, nothing left out."""
    nbytes = sum(tensor.numel() * tensor.itemsize for tensor in stored_bytes(layer).values())
    counted = bits_per_weight(layer.recipe.fields(layer.shape), layer.shape)
    assert counted == 8 * nbytes / math.prod(layer.shape)
    assert layer.stats is not None
    assert layer.stats["bits_per_weight"] == counted


def law_stats_are_true(layer: QuantizedLayer, problem: LayerProblem) -> None:
    """The losses recorded of a problem's layer are those of the weight that it dequantizes to."""
    recipe = layer.recipe
    error = (layer.dequantize() - problem.weight).double()
    weight = problem.weight.double()
    rows = torch.eye(len(error), dtype=torch.float64) if problem.row_hessian is None else problem.row_hessian.double()
    loss = float(torch.trace(rows @ error @ problem.hessian.double() @ error.T))
    whole = float(torch.trace(rows @ weight @ problem.hessian.double() @ weight.T))
    assert layer.stats is not None
    assert math.isclose(layer.stats["loss"], loss, rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(layer.stats["relative_loss"], loss / whole if whole else 0.0, rel_tol=1e-6, abs_tol=1e-12)
    nearest = layer.stats["nearest_relative_loss"]
    assert (nearest is None) == (math.prod(recipe.code_at(problem.shape).tile) > 1 or recipe.side_car is not None)
    if nearest is not None and isinstance(recipe.rounder, Nearest):
        assert math.isclose(nearest, layer.stats["relative_loss"], rel_tol=1e-9, abs_tol=1e-12)


def law_inputs_are_unmodified(recipe: Recipe, problem: LayerProblem) -> None:
    with unmodified(problem.weight, problem.hessian, problem.row_hessian):
        solve(recipe, problem)


def law_same_seed_same_bytes(recipe: Recipe, problem: LayerProblem) -> None:
    """The same seed stores the same bytes, on one thread and then again on two."""
    with threads(1):
        first = stored_bytes(solve(recipe, problem))
    with threads(2):
        again = stored_bytes(solve(recipe, problem))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), f"{name} differs"


# Every part


def law_part_is_a_value(part: object) -> None:
    """Parts compare, hash and print as the values they are made of."""
    twin = copy.deepcopy(part)
    assert part == twin
    assert hash(part) == hash(twin)
    assert repr(part) == repr(twin)
    assert type(part).__name__ in repr(part)
    assert "object at 0x" not in repr(part)
