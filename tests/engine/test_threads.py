"""Decoding gives up threads that have lost their cores, takes them back, and says the same
text with any number of them."""

import pytest
import torch
from torch import nn

from pard2.engine import threads
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.engine.threads import Threads, decoding_threads
from pard2.kernels.packed import PackedLinear, has_float16_products
from pard2.kernels.weight_format import has_panels
from pard2.models.target import Target
from tiny import tiny_model


class Machine:
    """Passes of 50 ms, in which so many cores are free for us."""

    def __init__(self, most):
        self.now = self.used = 0.0
        self.threads = Threads(most, lambda: self.now, lambda: self.used)

    def run(self, seconds, cores):
        """The numbers of threads that passes got."""
        counts = []
        for _ in range(round(seconds / 0.05)):
            with self.threads.decoding():
                counts.append(self.threads.count)
                self.now += 0.05
                self.used += 0.05 * min(cores, self.threads.count)
        return counts


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_an_idle_machine_keeps_all_threads():
    assert set(Machine(4).run(60, 4)) == {4}
    assert set(Machine(2).run(60, 1.8)) == {2}, "what a core does now and then for others is no loss"


@pytest.mark.parametrize(("most", "cores", "left"), [(2, 1.3, 1), (2, 0.6, 1), (8, 7.4, 7), (64, 2.0, 2)])
def test_threads_without_a_core_are_given_up(most, cores, left):
    counts = Machine(most).run(60, cores)
    assert counts[:2] == [most, most] and counts[2] == left
    tries = sum(count == most for count in counts)
    assert 2 + 2 * 4 <= tries <= 2 + 2 * 8, "tried again after 1, 2, 4, 8, 16 and 30 seconds, not all the time"


def test_threads_come_back_when_the_machine_is_idle_again():
    machine = Machine(2)
    machine.run(3, 1.2)
    counts = machine.run(10, 2)
    assert counts[-100:] == [2] * 100
    machine.run(0.1, 1.2)
    assert machine.run(1.05, 2)[-1] == 2, "a loss after a good time is forgotten within a second"


def test_torch_has_all_its_threads_between_passes():
    torch.set_num_threads(2)
    machine = Machine(2)
    machine.run(1, 1)
    with machine.threads.decoding():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


class OtherBits(PackedLinear):
    def __init__(self):
        nn.Module.__init__(self)
        self.in_features, self.panels = 8, None

    def forward(self, x):
        return x * (1 + torch.get_num_threads() / 1000)


needs_packing = pytest.mark.skipif(not has_float16_products(), reason="no products of FBGEMM on this CPU")


def most_of(model, monkeypatch, **environment):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_DYNAMIC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(2)
    found = decoding_threads(model).count
    assert torch.get_num_threads() == 2
    return found


@needs_packing
def test_the_number_is_fixed_where_it_would_be_wrong_to_change_it(monkeypatch):
    packed = PackedLinear(torch.randn(16, 32, dtype=torch.bfloat16), None, "fbgemm")
    assert most_of(packed, monkeypatch) == 2
    assert most_of(packed, monkeypatch, OMP_NUM_THREADS="2") == 1
    assert most_of(packed, monkeypatch, OMP_WAIT_POLICY="PASSIVE") == 1
    assert most_of(nn.Linear(32, 16), monkeypatch) == 1, "float32 products round otherwise with another number of threads"
    assert most_of(OtherBits(), monkeypatch) == 1


@needs_packing
def test_the_text_does_not_depend_on_the_threads(monkeypatch):
    torch.set_num_threads(2)
    target = Target(tiny_model(seed=3).to(torch.bfloat16), weight_format="fbgemm")
    engine = Engine(target, None, "ar")
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    usual = engine.generate([[1, 2, 3]], params)[0].token_ids
    counts = iter([1, 2] * 100)
    monkeypatch.setattr(threads.Threads, "_decide", lambda self, *_: setattr(self, "count", next(counts)))
    monkeypatch.setattr(threads, "_WINDOW", 0.0)
    engine._threads = Threads(2)
    assert engine.generate([[1, 2, 3]], params)[0].token_ids == usual
    assert next(counts) in (1, 2)


@pytest.mark.skipif(not has_panels(), reason="no numba, or a processor that our kernels are not written for")
def test_our_own_kernels_take_the_threads_and_torch_takes_one(monkeypatch):
    """Whatever the environment says of OpenMP: they are not its threads, and sleep when they wait."""
    from pard2.kernels.team import in_place_of_torch, team_size

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    ours, other = (Target(tiny_model(seed=3).to(torch.bfloat16), weight_format=form).model for form in ("panels", "plain"))
    for target, draft, expected in ((ours, None, 1), (ours, ours, 1), (ours, other, 3), (other, ours, 3)):
        with decoding_threads(target, draft).decoding():
            assert (torch.get_num_threads(), team_size()) == (expected, 3)
        assert (torch.get_num_threads(), team_size()) == (3, 3)
    with in_place_of_torch(), in_place_of_torch():
        assert (torch.get_num_threads(), team_size()) == (1, 3)
    assert (torch.get_num_threads(), team_size()) == (3, 3)
