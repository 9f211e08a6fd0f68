"""Layer names become a grid of blocks and matrices."""

import pytest

from lowbit.report.grid import DISTANCE, RELATIVE_LOSS, layer_grid, split_name, worst_first
from report.records import layer


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.layers.3.self_attn.q_proj", ("3", "self_attn.q_proj")),
        ("transformer.h.11.mlp.c_fc", ("11", "mlp.c_fc")),
        ("model.layers.0.mlp.experts.7.up_proj", ("0", "mlp.experts.*.up_proj")),
        ("model.layers.0.mlp.gate_2b", ("0", "mlp.gate_2b")),
        ("lm_head", ("outside the blocks", "lm_head")),
    ],
)
def test_split_name(name, parts):
    assert split_name(name) == parts


def test_experts_share_a_cell_that_shows_the_worst():
    losses = [0.01, 0.4, 0.02]
    layers = [layer(f"l.0.experts.{i}.up", relative_loss=loss) for i, loss in enumerate(losses)]
    grid = layer_grid(layers, RELATIVE_LOSS)
    (cell,) = grid.cells["0"]
    assert (cell.name, cell.value, cell.members) == ("l.0.experts.1.up", 0.4, 3)
    assert grid.shared


def test_heat_runs_with_the_logarithm_and_holes_stay_holes():
    layers = [
        layer("l.0.a", relative_loss=0.001),
        layer("l.0.b", relative_loss=0.01),
        layer("l.1.b", relative_loss=0.1),
        layer("l.2.a", relative_loss=0.0),
    ]
    grid = layer_grid(layers, RELATIVE_LOSS)
    assert grid.matrices == ("a", "b")
    heat = {block: [cell and cell.heat for cell in cells] for block, cells in grid.cells.items()}
    assert heat == {"0": [0.0, 50.0], "1": [None, 100.0], "2": [0.0, None]}
    assert (grid.best, grid.worst) == ("0.100 %", "10.0 %")


def test_distances_run_with_bits_and_layers_without_one_are_left_white():
    layers = [
        layer("l.0.a", above=0.2),
        layer("l.0.b", above=0.3),
        layer("l.1.a", above=0.7),
        layer("l.1.b", above=None),
    ]
    grid = layer_grid(layers, DISTANCE)
    assert [[cell and cell.heat for cell in cells] for cells in grid.cells.values()] == [[0.0, 20.0], [100.0, None]]
    assert (grid.best, grid.worst) == ("0.20 bits", "0.70 bits")
    assert [one["name"] for one in worst_first(layers, DISTANCE)] == ["l.1.a", "l.0.b", "l.0.a", "l.1.b"]


def test_below_the_limit_is_better_than_on_it():
    """Weights that are not Gaussian may get there."""
    layers = [layer("l.0.a", above=-0.1), layer("l.0.b", above=0.3)]
    assert layer_grid(layers, DISTANCE).cells["0"][0].heat == 0.0
