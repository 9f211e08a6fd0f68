"""Windows run on an accelerator. None is needed but for the last test: the others pretend there is one."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import lowbit
from lowbit.core.errors import BadRequest
from lowbit.pipeline import device as devices
from lowbit.pipeline.architecture import set_weight
from lowbit.pipeline.pieces import apart, with_tensors
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.pipeline.workers import Here
from lowbit.recipes import make_recipe
from pipeline.killing import Killed, kill_at
from pipeline.pretended import DEVICE, Pretended
from pipeline.tiny import contents, save_tiny

LENGTHS = {"samples": 5, "length": 32}
THERE = Options(device="cuda")


class Checking(Here):
    """Calls that return nothing but tensors of the processor. functions: what was called where `DEVICE` was needed."""

    def __init__(self):
        self.functions = set()

    def map(self, function, calls, needs):
        if needs.device == DEVICE:
            self.functions.add(function.__name__)
        for found in super().map(function, calls, needs):
            assert all(tensor.device == devices.CPU for tensor in apart(found)[1])
            yield found


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """Of a short text: reading the standard library would take most of the time."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"{i} and {i * i % 97}," for i in range(400)))
    return Calibration(str(text), **LENGTHS)


@pytest.fixture
def pretended(monkeypatch):
    """`cuda` is the pretended accelerator, of 1 GB."""
    real, workers = devices.computing_on, Checking()

    @contextmanager
    def computing_on(device):
        if device == DEVICE:
            with Pretended(), real(device):
                yield
        else:
            yield

    monkeypatch.setattr("lowbit.pipeline.observe.computing_on", computing_on)
    monkeypatch.setattr("lowbit.pipeline.gradients.computing_on", computing_on)
    monkeypatch.setattr("lowbit.pipeline.quantize.device_of", lambda name: DEVICE if name == "cuda" else devices.CPU)
    monkeypatch.setattr("lowbit.pipeline.device.accelerators", lambda: (("Pretended", 1 << 30),))
    monkeypatch.setattr("lowbit.pipeline.quantize.workers_at", lambda address: nullcontext(workers))
    monkeypatch.setattr("lowbit.pipeline.drive.BATCH_TOKENS", 64)
    with sdpa_kernel(SDPBackend.MATH):  # the processor's own attention would take sums in another order
        yield workers


CASES = {
    "inputs": ("gpt2", "optq", {}),
    "experts in two streams": ("qwen3_moe", "qronos", {}),
    "attention": ("llama", "boa", {}),
    "importance of experts": ("mixtral", "rsq", {}),
    "places": ("gpt2", "optq", {"statistic": "WeightedMoment(TokenRarity())"}),
    "gradients of outputs": ("opt", "optq", {"statistic": "TwoSided(rows=GradientCovariance())"}),
    "gradients of weights": ("llama", "squeezellm", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_all_that_windows_meet_is_on_the_device_and_what_comes_out_is_not(case, tmp_path, calibration, pretended):
    """Mixing the two raises there; numbers are the processor's, so the bytes of the whole run must be, too."""
    kind, recipe, settings = CASES[case]
    model, chosen = save_tiny(kind, tmp_path / "model"), make_recipe(recipe, settings)
    lowbit.quantize(model, tmp_path / "here", chosen, calibration=calibration)
    assert not pretended.functions
    lowbit.quantize(model, tmp_path / "there", chosen, calibration=calibration, options=THERE)
    assert pretended.functions >= {"gather", "advance"}
    assert case.startswith("gradients") == ("gather_gradients" in pretended.functions)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_the_pretended_device_raises_where_sides_are_mixed():
    """Else the test above would show nothing."""
    with Pretended():
        there = torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            torch.zeros(2, 3, dtype=torch.float64).add_(there)


def test_a_run_ends_on_the_kind_of_device_on_which_it_began(tmp_path, calibration, pretended, monkeypatch):
    model, out = save_tiny("llama", tmp_path / "model"), tmp_path / "out"
    with monkeypatch.context() as patched:
        kill_at(patched, 5, "before")
        with pytest.raises(Killed):
            lowbit.quantize(model, out, "optq", calibration=calibration, options=THERE)
    with pytest.raises(BadRequest, match=r"started with another device \(Pretended, not cpu\)"):
        lowbit.quantize(model, out, "optq", calibration=calibration, options=Options(resume=True))
    monkeypatch.setattr("lowbit.pipeline.device.accelerators", lambda: (("Another", 1 << 30),))
    with pytest.raises(BadRequest, match=r"started with another device \(Pretended, not Another\)"):
        lowbit.quantize(model, out, "optq", calibration=calibration, options=Options(resume=True, device="cuda"))


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("cuda", (), r"--device cuda: torch does not find it on this machine. There is: cpu\."),
        ("cuda:2", (("A", 1), ("B", 1)), r"--device cuda:2: .* There is: cpu, cuda:0 \(A\), cuda:1 \(B\)\."),
        ("cuda", (("A", 1),), r"running windows through a block takes 0.00 GB, and A has 0.00 GB"),
        ("mps", (), "--device mps: nothing that windows can run on. Use cpu, cuda or cuda:1"),
        ("tpu v9", (), "--device tpu v9: nothing that windows can run on"),
        ("", (), "--device : nothing that windows can run on"),
    ],
)
def test_a_device_that_cannot_be_is_refused_before_anything_is_written(
    name, found, message, tmp_path, calibration, monkeypatch
):
    monkeypatch.setattr("lowbit.pipeline.device.accelerators", lambda: found)
    model = save_tiny("llama", tmp_path / "model")
    with pytest.raises(BadRequest, match=message):
        lowbit.quantize(model, tmp_path / "out", "optq", calibration=calibration, options=Options(device=name))
    assert not (tmp_path / "out").exists()


def test_a_value_taken_apart_and_put_together_is_the_same():
    linear = torch.nn.Linear(3, 3)
    value = {"a": [linear, linear.weight], "b": (1, "x", torch.arange(3))}
    copy = with_tensors(value, lambda tensor: 2 * tensor)
    assert isinstance(copy["a"][1], torch.nn.Parameter)
    assert copy["a"][0].weight is copy["a"][1], "held twice, moved once"
    assert torch.equal(copy["a"][1], 2 * linear.weight)
    assert copy["b"][:2] == (1, "x")
    assert torch.equal(copy["b"][2], torch.tensor([0, 2, 4]))


def test_a_weight_stays_on_the_device_as_long_as_it_lives_here():
    layer = torch.nn.Linear(3, 3, bias=False)
    with Pretended():
        first, second = (devices.sent(layer, DEVICE).weight for _ in range(2))
        assert first.held.data_ptr() == second.held.data_ptr(), "moved twice"
        set_weight(layer, torch.ones(3, 3))
        assert torch.equal(devices.sent(layer, DEVICE).weight.cpu(), torch.ones(3, 3))
    assert len(devices._resident[DEVICE]) == 1
    del layer
    assert not devices._resident[DEVICE]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("recipe", ["optq", "qronos", "boa", "squeezellm"])
def test_a_gpu_gives_what_the_processor_does_but_for_the_order_of_sums(recipe, tmp_path, calibration):
    """The only test that needs one. The same bytes twice; the processor's losses to 1e-3."""
    model = save_tiny("llama", tmp_path / "model")

    def run(out, **options):
        return lowbit.quantize(model, tmp_path / out, recipe, calibration=calibration, options=Options(**options))

    here, there = run("here"), run("there", device="cuda")
    for expected, found in zip(here["layers"], there["layers"], strict=True):
        assert found["relative_loss"] == pytest.approx(expected["relative_loss"], rel=1e-3, abs=1e-6)
    run("again", device="cuda")
    assert contents(tmp_path / "again") == contents(tmp_path / "there")
    lowbit.load(tmp_path / "there")
