"""What the pipeline observes of attention, gradients and experts, against the model itself."""

import pytest
import torch
from torch.autograd.functional import jacobian
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.core.errors import BadRequest
from lowbit.core.parts import OF_ONE_LAYER
from lowbit.pipeline.attention import ATTENTION, watch_attention
from lowbit.pipeline.capture import Group, record_calls, run_block
from lowbit.pipeline.gradients import gather_gradients
from lowbit.pipeline.observe import Watched, Windows
from lowbit.pipeline.source import SourceModel
from lowbit.statistics import AttentionAware, FisherDiagonal, GradientCovariance, TwoSided
from pipeline.tiny import CONFIGS, save_tiny

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
ALL = ATTENTION | OF_ONE_LAYER


def opened(kind, folder):
    """The model's first block with its hidden states and call."""
    source = SourceModel.open(str(save_tiny(kind, folder / kind)))
    with source.outside_blocks() as model:
        hidden, calls = record_calls(model, source.blocks, IDS)
    source.load(source.blocks[0].module, source.blocks[0].name)
    return source, source.blocks[0], hidden, calls[0]


def attention_of(block, hidden, call):
    with torch.no_grad():
        return watch_attention(block, hidden, call)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "gemma2"])
def test_probabilities_are_those_of_the_model(kind, tmp_path):
    """The model's own eager attention returns them."""
    _, block, hidden, call = opened(kind, tmp_path)
    folder = tmp_path / kind
    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = eager(IDS, output_attentions=True).attentions[0]
    torch.testing.assert_close(attention_of(block, hidden, call).probabilities, expected, rtol=1e-4, atol=1e-5)
    before = run_block(block.module, hidden, call)
    attention_of(block, hidden, call)
    assert torch.equal(run_block(block.module, hidden, call), before)  # the model's own attention is back


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "opt"])
def test_which_layers_feed_attention_is_found_without_their_names(kind, tmp_path):
    _, block, hidden, call = opened(kind, tmp_path)
    attention = attention_of(block, hidden, call)
    seen = {name.rpartition(".")[2]: attention.of(name, ALL).keys() for name, _ in block.linears()}
    with_curvature = {name for name, found in seen.items() if "output_curvature" in found}
    assert with_curvature == {"q_proj", "k_proj", "v_proj"}
    assert {name for name, found in seen.items() if "mixing" in found} == {"v_proj"}


@pytest.mark.parametrize(("kind", "layer"), [("gpt2", "c_attn"), ("phi3", "qkv_proj"), ("gpt_neox", "query_key_value")])
def test_a_fused_layer_has_the_curvature_of_all_its_rows(kind, layer, tmp_path):
    _, block, hidden, call = opened(kind, tmp_path)
    name = next(name for name, _ in block.linears() if name.endswith(layer))
    seen = attention_of(block, hidden, call).of(name, ALL)
    assert "mixing" not in seen
    assert seen["output_curvature"].shape[1:] == (8, 8)
    assert bool((seen["output_curvature"].diagonal(dim1=1, dim2=2).sum(1) > 0).all())


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_curvature_is_the_second_derivative_of_the_logits(kind, tmp_path):
    """|K_h D q|^2 over all keys, differentiated twice by one output of the query layer at a time, all maps included."""
    _, block, hidden, call = opened(kind, tmp_path)
    module = block.module.self_attn
    with torch.no_grad():
        watched = watch_attention(block, hidden, call)
        queries = module.q_proj(block.module.input_layernorm(hidden))
    keys = watched.keys.double()
    expected = torch.zeros(4, 8, 8, dtype=torch.float64)
    for window in range(2):
        for token in range(0, 24, 5):
            cos, sin = (part[:, token : token + 1] for part in call.kwargs["position_embeddings"])

            def query(output, cos=cos, sin=sin):
                heads = output.view(1, 1, 4, 8)
                heads = module.q_norm(heads) if kind == "qwen3" else heads
                heads = heads.transpose(1, 2)
                turned = torch.cat([-heads[..., 4:], heads[..., :4]], -1)
                return (heads * cos + turned * sin)[0, :, 0]

            derivative = jacobian(query, queries[window, token]).view(4, 8, 4, 8).double()
            for head in range(4):
                k = keys[window, head // 2]
                own = derivative[head, :, head]
                expected[head] += own.T @ (k.T @ k / len(k)) @ own
    few = [token for token in range(24) if token % 5 == 0]
    queries_of_few = type(watched)(
        watched.queries[:, :, few], watched.keys, watched.values, watched.probabilities, watched.outputs, None
    )
    found = queries_of_few.of(f"{block.name}.self_attn.q_proj", ALL)["output_curvature"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_a_rotation_the_curvature_is_the_keys_second_moment(tmp_path):
    """OPT has none: every head's block is tokens times the mean of k k^T, and that of keys the mean of q q^T."""
    _, block, hidden, call = opened("opt", tmp_path)
    attention = attention_of(block, hidden, call)
    scale = 8**-0.5  # OPT scales its queries before attention sees them
    keys, queries = attention.keys.double(), attention.queries.double()
    found = attention.of(f"{block.name}.self_attn.q_proj", ALL)["output_curvature"]
    torch.testing.assert_close(found, (keys.mT @ keys).sum(0) * scale**2, rtol=1e-4, atol=1e-6)
    found = attention.of(f"{block.name}.self_attn.k_proj", ALL)["output_curvature"]
    torch.testing.assert_close(found, (queries.mT @ queries).sum(0), rtol=1e-4, atol=1e-6)


def test_values_are_weighed_by_the_output_projection_and_mixed_by_attention(tmp_path):
    """|A_h X D^T W_h^T|^2 for a change D of one head's values; four heads share two values."""
    _, block, hidden, call = opened("llama", tmp_path)
    attention = attention_of(block, hidden, call)
    seen = attention.of(f"{block.name}.self_attn.v_proj", ALL)
    projection = block.module.self_attn.o_proj.weight.detach().double()
    heads = [projection[:, 8 * h : 8 * h + 8] for h in range(4)]
    expected = [(heads[g].T @ heads[g] + heads[g + 1].T @ heads[g + 1]) / 2 * IDS.numel() for g in (0, 2)]
    torch.testing.assert_close(seen["output_curvature"], torch.stack(expected), rtol=1e-4, atol=1e-4)
    a = attention.probabilities
    torch.testing.assert_close(seen["mixing"], sum(a[:, h].mT @ a[:, h] for h in range(4)) / 4)
    statistic, x = AttentionAware(), hidden.flatten(0, 1)
    state = statistic.update(
        statistic.init(32), {"inputs": x, **{name: seen[name] for name in OF_ONE_LAYER & seen.keys()}}
    )
    mixed = torch.stack([a[:, h] @ hidden for h in range(4)]).flatten(0, 2)
    problem = statistic.problem(state, torch.ones(16, 32))[0]
    torch.testing.assert_close(problem.hessian, (mixed.T @ mixed / len(mixed)).double(), rtol=1e-4, atol=1e-5)
    assert not problem.row_hessian[:8, 8:].any()


def test_a_block_without_attention_is_refused(tmp_path):
    _, block, hidden, call = opened("llama", tmp_path)
    block.module.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with pytest.raises(BadRequest, match="no attention that can be looked at"):
        attention_of(block, hidden, call)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_gradients_are_those_of_the_summed_loss(kind, tmp_path):
    """Once for the whole model: here by a bias of each token's output, one layer at a time."""
    source = SourceModel.open(str(save_tiny(kind, tmp_path / kind)))
    names = [name for block in source.blocks for name, _ in block.linears()][:8]
    statistic = TwoSided(rows=GradientCovariance())
    source.load(source.model, "")
    source.model.tie_weights()
    states = gather_gradients(source.model, IDS, 0, dict.fromkeys(names, statistic))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype=torch.float32)
    for name in [name for name in names if "experts" not in name][:4]:
        added = []

        def shift(module, args, output, added=added):
            added.append(torch.zeros_like(output, requires_grad=True))
            return output + added[0]

        handle = model.get_submodule(name).register_forward_hook(shift)
        logits = model(IDS).logits[:, :-1]
        picked = logits.log_softmax(-1).gather(2, IDS[:, 1:, None])
        gradient = torch.autograd.grad(-picked.sum(), added)[0].flatten(0, 1).double()
        handle.remove()
        state = states[Group((name,)), statistic]
        assert state.tokens == IDS.numel()
        torch.testing.assert_close(state.rows, gradient.T @ gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_sensitivity_is_the_mean_square_of_each_windows_gradient(kind, tmp_path):
    """Of one pass: here by differentiating each window's loss by the weights themselves."""
    source = SourceModel.open(str(save_tiny(kind, tmp_path / kind)))
    linears = {name: module for block in source.blocks for name, module in block.linears()}
    statistic = FisherDiagonal()
    source.load(source.model, "")
    source.model.tie_weights()
    states = gather_gradients(source.model, IDS, 0, dict.fromkeys(linears, statistic))
    weights = {name: linears[name].weight.requires_grad_() for name, _ in list(linears.items())[::3]}
    squares = dict.fromkeys(weights, 0)
    for window in IDS:
        logits = source.model(input_ids=window[None]).logits[0, :-1]
        loss = -logits.log_softmax(-1).gather(1, window[1:, None]).sum()
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        squares |= {n: squares[n] + g.square() for n, g in zip(weights, found, strict=True) if g is not None}
    for name, expected in squares.items():
        state = states.get((Group((name,)), statistic))
        assert (state is None) == isinstance(expected, int)  # an expert that no token reached
        if state is not None:
            expected = expected.T if kind == "gpt2" else expected
            torch.testing.assert_close(state.total, expected, rtol=1e-3, atol=1e-6)


def test_float_inputs_of_an_expert_are_those_of_the_same_tokens(tmp_path):
    """The quantized stream may send tokens elsewhere; inputs are compared token by token all the same."""
    _, block, hidden, call = opened("qwen3_moe", tmp_path)
    other = hidden + 0.5 * hidden.std() * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    counts = torch.ones(2, 24, dtype=torch.int64)
    watched, windows = Watched(block, lambda windows: call, block), Windows(other, hidden, counts)
    names = [name for name, _ in block.linears() if name.endswith(("gate_proj", "down_proj"))]
    needed = frozenset({"inputs", "float_inputs", "places"})
    with torch.no_grad():
        scene = watched.observe(windows, names, needed)
        alone = watched.observe(windows, [names[0]], needed)
    experts_in = {}
    handle = block.module.mlp.register_forward_pre_hook(lambda module, args: experts_in.update(x=args[0]))
    run_block(block.module, hidden, call)
    handle.remove()
    met = 0
    for name in names:
        seen = scene.of(name)
        if not seen:
            continue
        assert seen["inputs"].shape == seen["float_inputs"].shape
        if name.endswith("gate_proj"):
            window, position = seen["places"].unbind(1)
            torch.testing.assert_close(seen["float_inputs"], experts_in["x"][window, position])
            met += len(window)
    assert met == 2 * IDS.numel()  # two experts a token
    assert torch.equal(alone.of(names[0])["inputs"], scene.of(names[0])["inputs"])


def test_what_a_recipe_asks_for_decides_how_many_windows_run_together(tmp_path, monkeypatch):
    """Looking at attention takes memory for each pair of tokens: windows then run in smaller batches."""
    monkeypatch.setattr("lowbit.pipeline.drive.ATTENTION_PAIRS", 2 * 32 * 32)
    model = save_tiny("llama", tmp_path / "model")
    calibration = lowbit.Calibration(samples=5, length=32)
    sizes = []
    monkeypatch.setattr(
        "lowbit.pipeline.observe.watch_attention",
        lambda block, hidden, call: (sizes.append(len(hidden)), watch_attention(block, hidden, call))[1],
    )
    lowbit.quantize(model, tmp_path / "out", "rsq", calibration=calibration, targets=["*.0.*q_proj"])
    assert sizes == [2, 2, 1]
