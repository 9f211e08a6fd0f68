"""EXL3: exported codes are the same in a reader written from the definition, and come back; lies are refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import lowbit
from exchange.folders import TOKENS, checkpoint, solved
from lowbit.core.errors import BadRequest
from lowbit.core.random import stream
from lowbit.exchange.exl3 import Exl3
from lowbit.exchange.fragments import Fragments, layer_of
from lowbit.formats.files import write_tensors_atomically
from lowbit.formats.shards import Shards, read_tensors
from lowbit.recipes import exl3, make_recipe, optq, qtip

CONFIG = LlamaConfig(
    vocab_size=272,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    bos_token_id=256,
    eos_token_id=256,
    tie_word_embeddings=True,
)
GATE = "model.layers.0.mlp.gate_proj"


def exl3_weight(tensors):
    """W [N, K] from the definition: a path of bits through each tile, a codebook, two rotations and two vectors."""
    trellis, suh, svh = tensors["trellis"], tensors["suh"].double(), tensors["svh"].double()
    across, down, words = trellis.shape
    b = words // 16
    inner = torch.empty(down * 16, across * 16, dtype=torch.float64)
    for i in range(across):
        for j in range(down):
            halves = [int(word) & 0xFFFF for word in trellis[i, j]]
            bits = "".join(f"{high:016b}{low:016b}" for low, high in zip(halves[::2], halves[1::2], strict=True))
            circle = bits[-16:] + bits
            for step in range(256):
                state = int(circle[(step + 1) * b : (step + 1) * b + 16], 2)
                lane, rest = step // 8, step % 8
                k = 2 * (lane % 4) + rest % 2 + 8 * (rest // 2 % 2)
                n = lane // 4 + 8 * (rest // 4)
                inner[16 * j + n, 16 * i + k] = exl3_value(state, tensors)
    order = torch.arange(128)
    signs = torch.tensor([[1 - 2 * ((int(r) & int(c)).bit_count() % 2) for c in order] for r in order])
    block = signs.double() / 128**0.5
    rotated = torch.block_diag(*[block] * (down // 8)) @ inner @ torch.block_diag(*[block] * (across // 8))
    return (svh[:, None] * rotated * suh).float()


def exl3_value(state, tensors):
    if "mul1" in tensors:
        word = state * (int(tensors["mul1"]) & 0xFFFFFFFF) & 0xFFFFFFFF
        total = torch.tensor([sum(word.to_bytes(4, "little")), 0x1EEE, 0xC931], dtype=torch.int32)
        scale, shift = total[1:].to(torch.uint16).view(torch.float16).double()
        return (1024 + total[0]) * scale + shift
    word = state * (int(tensors["mcg"]) & 0xFFFFFFFF) if "mcg" in tensors else state * 89226354 + 64248484
    word = word & 0x8FFF8FFF ^ 0x3B603B60
    return torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.uint16).view(torch.float16).double().sum()


def random_fragments(bits, values, n=128, k=128, size=1.0):
    rng = stream(0, "fragments", f"{bits} {values}")
    codes = torch.randint(0, 1 << bits, (k // 16, n // 16, 256), generator=rng, dtype=torch.uint8)
    suh, svh = torch.randn(k, generator=rng).half(), (size * torch.randn(n, generator=rng)).half()
    return Fragments(bits, values, codes, suh, svh)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("codes", "suh", "svh"))


@pytest.mark.parametrize("values", ["mul1", "mcg", "3inst"])
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_any_layer_goes_over_exactly_and_comes_back(bits, values):
    fragments = random_fragments(bits, values)
    tensors = Exl3().tensors(fragments)
    assert tensors["trellis"].shape == (8, 8, 16 * bits)
    read = Exl3().read({}, tensors)
    assert read.grid == fragments.grid
    assert same(read, fragments)
    layer = layer_of(read, "test")
    expected = exl3_weight(tensors)
    assert (layer.dequantize() - expected).abs().max() < 1e-6 * expected.abs().max()
    assert same(Exl3().seen(layer), fragments)


def layer_tensors(folder, layer):
    shards = Shards.open(folder)
    return {name.rpartition(".")[2]: shards.load(name) for name in shards.entries if name.startswith(f"{layer}.")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of several widths and codebooks, exported and imported again."""
    place = tmp_path_factory.mktemp("exl3")
    recipes = exl3(2), exl3(3, "mcg"), None, exl3(2, "3inst")
    layers = checkpoint(place / "own", *recipes, config=CONFIG)
    done = lowbit.export(place / "own", place / "out", "exl3")
    lowbit.import_(place / "out", place / "back")
    return place, layers, done


def test_a_folder_has_the_weights_that_were_optimised(folders):
    place, layers, done = folders
    assert done["layers"] == len(layers) == 5
    for name, layer in layers.items():
        tensors = layer_tensors(place / "out", name)
        assert "weight" not in tensors
        if name.endswith(("q_proj", "up_proj")):
            expected = layer.dequantize()
            assert (exl3_weight(tensors) - expected).abs().max() < 1e-6 * expected.abs().max()
        again = layer_of(Exl3().read({}, tensors), "test")
        assert torch.equal(again.codes.flatten(), layer.codes.flatten())


def test_a_folder_comes_back_with_the_same_logits(folders):
    place = folders[0]
    own, back = (lowbit.load(place / name, dtype=torch.float32) for name in ("own", "back"))
    assert type(back.model.layers[0].mlp.up_proj).__name__ == "QuantizedLinear"
    with torch.no_grad():
        expected, found = own(TOKENS).logits, back(TOKENS).logits
    assert torch.equal(found, expected)
    lowbit.export(place / "back", place / "again", "exl3")
    files = [read_tensors(place / name / "model.safetensors") for name in ("out", "again")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_readers_find_what_they_ask_for(folders):
    place, layers, _ = folders
    config = json.loads((place / "out" / "config.json").read_text())
    settings = config["quantization_config"]
    assert settings == json.loads((place / "out" / "quantization_config.json").read_text())
    assert (settings["quant_method"], settings["format"]) == ("exl3", "exl3")
    assert settings["tensor_storage"].keys() == layers.keys()
    assert "version" not in settings  # GPTQModel takes it for another format's
    held = read_tensors(place / "out" / "model.safetensors")
    for storage in settings["tensor_storage"].values():
        for name, stored in storage["stored_tensors"].items():
            assert stored["shape"] == list(held[name].shape)
            assert stored["torch_dtype"] == str(held[name].dtype).removeprefix("torch.")


def test_other_parts_of_a_recipe_do_not_matter():
    """Any statistic and rounder, and rotations put together otherwise."""
    weight = torch.randn(128, 128, generator=stream(0, "weight"))
    recipe = make_recipe(
        "exl3",
        {
            "rounder": "CoordinateDescent(rounder, passes=1)",
            "transform": 'Chain((ChannelScales("both", size=0.9), RandomizedHadamard(128)))',
        },
    )
    layer = solved(weight, recipe)
    read = exl3_weight(Exl3().tensors(Exl3().seen(layer)))
    assert (read - layer.dequantize()).abs().max() < 1e-6 * read.abs().max()


REFUSED = {
    "a state of 12 bits": (exl3(2, L=12), {}, "L=12 bits"),
    "another order": (qtip(2), {}, "not tail-biting fragments"),
    "integers": (optq(4), {}, "IntegerGrid, not tail-biting.*fits gptq, gptq_v2"),
    "blocks of 64": (
        make_recipe("exl3", {"transform": "RandomizedHadamard(64)"}),
        {},
        "other coordinates than rotated",
    ),
    "something beside": (make_recipe("exl3", {"side_car": "LowRank(2)"}), {}, "beside its codes"),
    "inputs that no block divides": (exl3(2), {"intermediate_size": 192}, "192 outputs or 128 inputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_exl3_cannot_hold_is_refused_and_leaves_nothing(case, tmp_path):
    recipe, sizes, message = REFUSED[case]
    config = LlamaConfig(**(CONFIG.to_dict() | sizes))
    only = (None,) * 4 + (recipe,) if sizes else (recipe,) + (None,) * 6
    checkpoint(tmp_path / "own", *only, config=config)
    with pytest.raises(BadRequest, match=message):
        lowbit.export(tmp_path / "own", tmp_path / "out", "exl3")
    assert not (tmp_path / "out").exists()


def first(value):
    def change(tensor):
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


ATTACKS = {
    "no svh": ({"svh": None}, "tensor svh is missing"),
    "no trellis": ({"trellis": None}, "but no trellis"),
    "packed signs": ({"su": lambda _: torch.zeros(8, dtype=torch.int16)}, "su or sv, the packed signs"),
    "suh of another length": ({"suh": lambda t: t[1:]}, r"suh is torch.float16 \[127\]"),
    "svh of another type": ({"svh": lambda t: t.float()}, "svh is torch.float32"),
    "svh of NaN": ({"svh": first(float("nan"))}, "svh is not finite"),
    "half bits": ({"trellis": lambda t: torch.zeros(8, 16, 24, dtype=torch.int16)}, "24 words; lowbit reads whole"),
    "nine bits": ({"trellis": lambda t: torch.zeros(8, 16, 144, dtype=torch.int16)}, "144 words"),
    "no words": ({"trellis": lambda t: t[..., :0]}, "0 words"),
    "no tiles": ({"trellis": lambda t: t[:0]}, "0 x 16 tiles"),
    "a block torn apart": ({"trellis": lambda t: t[:, :15]}, "8 x 15 tiles"),
    "another shape of tiles": ({"trellis": lambda t: t.flatten(1)}, "trellis is torch.int16"),
    "an unknown codebook": ({"mul1": lambda t: t + 1}, "mul1 is 0x83dcd12e, a codebook"),
    "a codebook of another type": ({"mul1": lambda t: t.float()}, "mul1 must be one int32"),
    "two codebooks": ({"mcg": lambda _: torch.tensor(1, dtype=torch.int32)}, "mul1 and mcg"),
    "codes and a dense weight": ({"weight": lambda _: torch.ones(256, 128)}, "weight, which is none of exl3's"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_lying_checkpoint_is_refused_and_leaves_nothing(attack, folders, tmp_path):
    changes, message = ATTACKS[attack]
    bad, good = tmp_path / "bad", folders[0] / "out"
    bad.mkdir()
    (bad / "config.json").write_text((good / "config.json").read_text())
    held = read_tensors(good / "model.safetensors")
    for field, change in changes.items():
        value = held.pop(f"{GATE}.{field}", None)
        if change is not None:
            held[f"{GATE}.{field}"] = change(value).contiguous()
    write_tensors_atomically(bad / "model.safetensors", held, {"format": "pt"})
    with pytest.raises(BadRequest, match=message):
        lowbit.import_(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vectors_may_have_zeros_and_tags_one_dimension():
    fragments = random_fragments(2, "mul1")
    fragments.suh[3], fragments.svh[5] = 0, 0
    tensors = Exl3().tensors(fragments)
    tensors["mul1"] = tensors["mul1"].view(1)
    weight = layer_of(Exl3().read({}, tensors), "test").dequantize()
    assert bool((weight[:, 3] == 0).all() and (weight[5] == 0).all())
    assert torch.isfinite(weight).all()


def test_a_folder_of_exllamav3_is_read_with_its_quantized_head(tmp_path):
    """No tensor_storage, a version, one-dimensional tags, biases, a head of its own."""
    torch.manual_seed(3)
    config = LlamaConfig(**(CONFIG.to_dict() | {"vocab_size": 384, "tie_word_embeddings": False, "mlp_bias": True}))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    held, layers = dict(model.state_dict()), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            fragments = random_fragments(4 if name == "lm_head" else 2, "mcg", *module.weight.shape, size=0.01)
            layers[name] = layer_of(fragments, "test")
            del held[f"{name}.weight"]
            tensors = Exl3().tensors(fragments)
            held |= {f"{name}.{field}": tensor for field, tensor in (tensors | {"mcg": tensors["mcg"].view(1)}).items()}
    settings = {"quant_method": "exl3", "version": "1.6.5", "bits": 2.0, "head_bits": 4, "codebook": "mcg"}
    settings |= {"calibration": {"rows": 250, "cols": 2048}, "out_scales": "always"}
    (tmp_path / "theirs").mkdir()
    write_tensors_atomically(tmp_path / "theirs" / "model.safetensors", held, {"format": "pt"})
    written = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": settings}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(written))
    assert lowbit.import_(tmp_path / "theirs", tmp_path / "own")["layers"] == 8
    for name, layer in layers.items():
        model.get_submodule(name).weight.data = layer.dequantize()
    with torch.no_grad():
        expected, found = model(TOKENS).logits, lowbit.load(tmp_path / "own", dtype=torch.float32)(TOKENS).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
