"""Layer names become a grid of blocks and matrices."""

import pytest

from lowbit.report.grid import loss_grid, split_name
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
    grid = loss_grid([layer(f"l.0.experts.{i}.up", relative_loss=loss) for i, loss in enumerate(losses)])
    (cell,) = grid.cells["0"]
    assert (cell.name, cell.relative_loss, cell.members) == ("l.0.experts.1.up", 0.4, 3)
    assert grid.shared


def test_heat_runs_with_the_logarithm_and_holes_stay_holes():
    grid = loss_grid(
        [
            layer("l.0.a", relative_loss=0.001),
            layer("l.0.b", relative_loss=0.01),
            layer("l.1.b", relative_loss=0.1),
            layer("l.2.a", relative_loss=0.0),
        ]
    )
    assert grid.matrices == ("a", "b")
    heat = {block: [cell and cell.heat for cell in cells] for block, cells in grid.cells.items()}
    assert heat == {"0": [0.0, 50.0], "1": [None, 100.0], "2": [0.0, None]}
    assert (grid.smallest, grid.largest) == (0.001, 0.1)
