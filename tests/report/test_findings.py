"""What a report says first: how good, where worst, what went otherwise, what to do."""

import pytest

from lowbit.report.findings import findings
from report.records import layer, measures, outcome, record


def found(**changes):
    return {one.about: one for one in findings(record(**changes))}


def test_quality_is_of_tokens_and_says_where_it_was_not_measured():
    text = found(measures=measures())["quality"].text
    for part in ("91.2 % of tokens", "less than 0.021 nats", "more than 0.71", "from 6.213 to 6.712"):
        assert part in text
    assert found(measures=measures() | {"divergence": None})["quality"].text == "Perplexity 6.712."
    assert found()["quality"].command == "lowbit report ."


def test_the_worst_layers_are_named():
    layers = [layer("a", relative_loss=0.01, above=0.2), layer("b", relative_loss=0.02, above=0.9)]
    layers += [layer("c", relative_loss=0.04, above=None)]
    told = found(layers=layers)
    assert told["loss"].text == (
        "The median layer loses 2.00 % of its output (3.00 % if rounded to nearest), the worst 4.00 %: c."
    )
    assert told["limit"].text == "The median layer is 0.55 bits from the limit of its rate, the farthest 0.90: b."
    assert "limit" not in found(layers=layers[2:])


def test_outcomes_are_counted_by_layers():
    layers = [layer("a", outcomes=[outcome("x"), outcome("y")]), layer("b", outcomes=[outcome("x")]), layer("c")]
    assert found(layers=layers)["outcomes"].text == "2 of 3 layers did not go as asked: x, y. See below."
    assert found()["outcomes"].text == "Every layer was solved as the recipe says."


@pytest.fixture
def uneven():
    """Four layers of one size, of which one loses four times what the others do."""
    return [layer(name, relative_loss=0.04 if name == "d" else 0.01) for name in "abcd"]


def test_layers_that_stand_out_get_a_bit_more_at_a_stated_price(uneven):
    advice = found(layers=uneven)["what to do"]
    assert advice.command == "--override 'd:bits=4'"
    assert "adds 0.25 bits a weight" in advice.text
    assert found(layers=uneven[:3])["what to do"].command == ""


@pytest.mark.parametrize("changes", [{"recipe_name": "mine"}, {"recipe": {"name": "optq", "code": {}}}])
def test_without_a_setting_of_bits_there_is_no_command(uneven, changes):
    advice = found(layers=uneven, **changes)["what to do"]
    assert advice.command == ""
    assert "most of all d." in advice.text
