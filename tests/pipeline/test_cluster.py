"""The result does not depend on who does the work: other processes, other machines, some of which are lost."""

import os
import pickle
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lowbit
from lowbit.core.errors import BadRequest
from lowbit.pipeline.activations import MOST_PARTS, batches, parts
from lowbit.pipeline.journal import Journal
from lowbit.pipeline.pieces import Shared, Sharing, apart
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.pipeline.workers import Needs
from lowbit.recipes import PARTS, make_recipe
from pipeline.dying import DyingOnce
from pipeline.killing import Killed, kill_at
from pipeline.tiny import contents, save_tiny

CALIBRATION = Calibration(samples=7, length=32)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Two windows at a time, so that there is something to share; of a short text, so that reading takes no time."""
    text = " ".join(f"{i} and {i * i % 97}," for i in range(400))
    monkeypatch.setattr("lowbit.pipeline.quantize.read_texts", lambda source: [text])
    monkeypatch.setattr("lowbit.pipeline.drive.BATCH_TOKENS", 64)


@pytest.mark.parametrize(("samples", "length", "tokens"), [(128, 2048, 8192), (33, 7, 7), (3, 32, 64), (1, 9, 8192)])
def test_parts_are_whole_batches_in_order(samples, length, tokens):
    """Which windows are summed together is a matter of the calibration alone."""
    found, whole = list(parts(samples, length, tokens)), list(batches(samples, length, tokens))
    assert len(found) <= MOST_PARTS
    assert [part.start for part in found] == [0, *(part.stop for part in found[:-1])]
    assert found[-1].stop == samples
    assert {part.start for part in found} <= {batch.start for batch in whole}


def test_no_windows_have_no_parts():
    assert list(parts(0, 32)) == []


class Elsewhere:
    """Two machines in turn, that get copies of what they are sent and whose results are copied, last call first.

    sent: bytes of tensors to and from machines, by the function that was called.
    """

    def __init__(self):
        self.sent, self.stored, self._sharing = Counter(), [], Sharing(self._put)
        self._here = [set(), set()]  # what each machine has

    def kind(self, device):
        return "cpu"

    def require(self, needs, what):
        assert needs.memory > 0, what

    def _put(self, tensor):
        self.stored.append(pickle.dumps(tensor))
        return len(self.stored) - 1

    def share(self, value):
        return self._sharing.share(value)

    def map(self, function, calls, needs):
        given = [pickle.dumps((function, arguments)) for arguments in calls]
        assert needs.memory > 0 or not given
        return reversed([self._called(data, number % 2) for number, data in reversed(list(enumerate(given)))])

    def _called(self, data, machine):
        function, arguments = pickle.loads(data)
        self._count(function, arguments)

        def get(references):
            tensors = [pickle.loads(self.stored[one]) for one in references]
            new = {
                one: tensor for one, tensor in zip(references, tensors, strict=True) if one not in self._here[machine]
            }
            self._here[machine].update(new)
            self._count(function, new)
            return tensors

        found = function(*(one.whole(get) if isinstance(one, Shared) else one for one in arguments))
        self._count(function, found)
        return pickle.loads(pickle.dumps(found))

    def _count(self, function, value):
        self.sent[function.__name__] += sum(tensor.nbytes for tensor in apart(value)[1])


@pytest.mark.parametrize(
    ("kind", "recipe", "settings"),
    [
        ("llama", "optq", {"bits": 3, "act_order": True}),
        ("qwen3_moe", "qronos", {}),
        ("llama", "boa", {}),
        ("llama", "squeezellm", {}),
        ("llama", "rtn", {}),
    ],
)
def test_workers_elsewhere_give_the_same_bytes(kind, recipe, settings, tmp_path, monkeypatch):
    model, chosen = save_tiny(kind, tmp_path / "model"), make_recipe(recipe, settings)
    lowbit.quantize(model, tmp_path / "here", chosen, calibration=CALIBRATION)
    monkeypatch.setattr("lowbit.pipeline.quantize.workers_at", lambda address: nullcontext(Elsewhere()))
    lowbit.quantize(model, tmp_path / "elsewhere", chosen, calibration=CALIBRATION)
    assert contents(tmp_path / "elsewhere") == contents(tmp_path / "here")


def test_each_weight_is_sent_once_and_once_again_when_it_has_changed(tmp_path, monkeypatch):
    """However many stages a block is watched in, and in two streams."""
    workers = Elsewhere()
    monkeypatch.setattr("lowbit.pipeline.quantize.workers_at", lambda address: nullcontext(workers))
    lowbit.quantize(save_tiny("llama", tmp_path / "model"), tmp_path / "out", "qronos", calibration=CALIBRATION)
    shapes = Counter(pickle.loads(tensor).shape for tensor in workers.stored)
    blocks, kinds = 2, 3  # as it is in the original block, as it is before it is quantized, and after
    assert shapes[32, 48] == blocks * kinds  # down
    assert shapes[48, 32] == blocks * kinds * 2  # gate, up


def test_a_run_that_began_here_goes_on_elsewhere(tmp_path, monkeypatch):
    model, out = save_tiny("mixtral", tmp_path / "model"), tmp_path / "out"
    lowbit.quantize(model, tmp_path / "here", "optq", calibration=CALIBRATION)
    with monkeypatch.context() as patched:
        kill_at(patched, 15, "before")
        with pytest.raises(Killed):
            lowbit.quantize(model, out, "optq", calibration=CALIBRATION)
    monkeypatch.setattr("lowbit.pipeline.quantize.workers_at", lambda address: nullcontext(Elsewhere()))
    lowbit.quantize(model, out, "optq", calibration=CALIBRATION, options=Options(resume=True))
    assert contents(out) == contents(tmp_path / "here")


def test_without_ray_the_request_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lowbit.pipeline.cluster", None)
    model = save_tiny("llama", tmp_path / "model")
    with pytest.raises(BadRequest, match=r"--cluster auto: this needs Ray. Run `pip install lowbit\[ray\]`"):
        lowbit.quantize(model, tmp_path / "out", "rtn", options=Options(cluster="auto"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no.such.machine.invalid:6379", "nonsense"])
def test_an_address_where_nobody_answers(address):
    cluster = pytest.importorskip("lowbit.pipeline.cluster", reason="Ray is not installed: pip install lowbit[ray]")
    with pytest.raises(BadRequest, match=f"--cluster {address}: no Ray cluster answers"), cluster.connected(address):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_a_view_is_sent_without_what_it_is_a_view_of(dtype):
    cluster = pytest.importorskip("lowbit.pipeline.cluster", reason="Ray is not installed: pip install lowbit[ray]")
    whole = torch.arange(24).view(4, 6).to(dtype)
    for tensor in (whole[1:3], whole.T, whole[0, 0], whole[:0]):
        packed = cluster._array(tensor)
        assert packed[0].nbytes == tensor.nbytes
        back = cluster._tensor(packed)
        assert back.dtype == dtype
        assert back.shape == tensor.shape
        assert torch.equal(back.float(), tensor.float())


@pytest.fixture(scope="module")
def machines():
    """A Ray cluster of two machines, all of it on this one. The first has two cores and says it has two GPUs."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install lowbit[ray]")
    from ray.cluster_utils import Cluster

    own = str(Path(__file__).parents[1])  # the rounder of these tests, too, is needed on every machine
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", own, prepend=os.pathsep)
        yield from two_machines(Cluster)


def two_machines(Cluster):
    settings = {"num_cpus": 1, "object_store_memory": 80 << 20}
    first = settings | {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=first)
    second = cluster.add_node(**settings)
    cluster.wait_for_nodes()
    yield cluster, second
    cluster.shutdown()


@pytest.mark.slow
def test_calls_that_compute_on_an_accelerator_are_given_one_each(machines, monkeypatch):
    """And the machine's cores divided by its accelerators; those that solve get cores and memory alone."""
    from lowbit.pipeline.cluster import connected
    from pipeline.declared import given, two_of_a_kind

    cuda = torch.device("cuda")
    with connected(machines[0].address) as workers:
        assert workers.kind(torch.device("cpu")) == "cpu"
        with pytest.raises(BadRequest, match="is to give 2 GPUs, and torch finds 0 there"):
            workers.kind(cuda)
        assert {str(found[1].get("GPU")) for found in workers.map(given, [(1,)], Needs(1000))} == {"None"}
    monkeypatch.setattr("lowbit.pipeline.cluster.accelerators", two_of_a_kind)
    with connected(machines[0].address) as workers:
        assert workers.kind(cuda) == "Declared"
        with pytest.raises(BadRequest, match=r"each call is given one of its own. Use --device cuda\."):
            workers.kind(torch.device("cuda:1"))
        with pytest.raises(BadRequest, match=r"solving takes 1\.50 GB, and Declared has 1\.07 GB"):
            workers.require(Needs(1_500_000_000, cuda), "solving")
        numbers, resources, accelerators = zip(
            *workers.map(given, [(i,) for i in range(6)], Needs(1000, cuda)), strict=True
        )
    assert numbers == tuple(range(6))
    assert all(one["GPU"] == 1 and one["CPU"] == 1 for one in resources)
    assert {len(one) for one in accelerators} == {1}


@pytest.mark.slow
def test_two_machines_of_which_one_is_lost_give_the_same_bytes(machines, tmp_path, monkeypatch):
    """A worker is killed in the middle of a solve, then the driver, then a whole machine."""
    cluster, second = machines
    monkeypatch.setitem(PARTS, "DyingOnce", DyingOnce)
    model, marker = save_tiny("llama", tmp_path / "model"), tmp_path / "marker"
    recipe = replace(make_recipe("optq", {"bits": 3, "group_size": 16}), rounder=DyingOnce(str(marker)))

    def run(out, **options):
        lowbit.quantize(model, out, recipe, calibration=CALIBRATION, options=Options(**options))

    with monkeypatch.context() as patched:
        kill_at(patched, 8, "before")
        with pytest.raises(Killed):
            run(tmp_path / "out", cluster=cluster.address)
    assert marker.exists()
    with monkeypatch.context() as patched:
        patched.setattr("lowbit.pipeline.quantize.watch_memory", lambda work, block: 1 << 60)
        with pytest.raises(BadRequest, match=r"takes .* GB, and the largest machine has"):
            run(tmp_path / "too-large", cluster=cluster.address)
        patched.setattr("lowbit.pipeline.cluster.VERSION", "0.0.0")
        with pytest.raises(BadRequest, match=r"has lowbit [0-9.]*, this machine has lowbit 0.0.0"):
            run(tmp_path / "too-old", cluster=cluster.address)
    assert not (tmp_path / "too-large").exists()
    record, written = Journal.record, []

    def losing(self, kind, name, data):
        written.append(name)
        if len(written) == 2:
            cluster.remove_node(second, allow_graceful=False)
        record(self, kind, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", losing)
        run(tmp_path / "out", cluster=cluster.address, resume=True)
    assert len(written) == 14 - 6 + 1, "finished layers were solved again"
    run(tmp_path / "here")
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
