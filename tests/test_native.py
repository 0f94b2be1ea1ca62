"""The C kernels: what they compute, and that everything works without them."""

import ctypes
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textebm import native
from textebm.config import PriorConfig
from textebm.model import langevin, recurrence
from textebm.model.energy import EBMPrior

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="there is no C compiler on this machine")


@pytest.fixture(scope="module")
def home_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TEXTEBM_HOME in which they are compiled once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def shared_home(home_of_all: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That home, the kernels wanted, and none loaded before or after."""
    monkeypatch.setenv("TEXTEBM_HOME", str(home_of_all))
    monkeypatch.delenv(native.SWITCH, raising=False)
    native.load.cache_clear()
    yield
    native.load.cache_clear()


@pytest.fixture
def home_of_its_own(tmp_path: Path, shared_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty TEXTEBM_HOME, and nothing loaded yet."""
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    native.load.cache_clear()
    yield tmp_path / "home"
    native.load.cache_clear()


@pytest.fixture
def gelu() -> native.Gelu:
    made = native.gelu(torch.zeros(1), 1)
    assert made is not None
    return made


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU and its derivative in float64."""
    point = x.double().requires_grad_()
    value = torch.nn.functional.gelu(point)
    return value.detach(), torch.autograd.grad(value.sum(), point)[0]


@needs_compiler
class TestGelu:
    @pytest.mark.parametrize("size", [1, 7, 16, 100_003])
    def test_value_and_derivative_are_those_of_float64_up_to_rounding(self, gelu: native.Gelu, size: int) -> None:
        x = torch.linspace(-12, 12, size)
        slope = x.clone()
        value = gelu.forward(slope, torch.empty_like(x))
        wanted, derivative = exact(x)
        # 7.5e-8 in Phi, times x, and some roundings of float32
        assert ((value - wanted).abs() <= 3e-7 * x.abs().clamp(min=1)).all()
        assert ((slope - derivative).abs() <= 5e-7).all()

    def test_backward_is_the_derivative_times_what_comes_from_above(self, gelu: native.Gelu) -> None:
        x, above = torch.randn(31, 17, generator=torch.Generator().manual_seed(0)), torch.full((31, 17), -2.5)
        below = gelu.backward(above, x.clone())
        torch.testing.assert_close(below, (-2.5 * exact(x)[1]).float(), rtol=0, atol=2e-6)
        assert (above == -2.5).all()

    def test_what_is_no_number_stays_none(self, gelu: native.Gelu) -> None:
        slope = torch.tensor([float("nan"), 1.0])
        value = gelu.forward(slope, torch.empty(2))
        assert value.isnan().tolist() == [True, False]
        assert slope.isnan().tolist() == [True, False]

    def test_far_out_it_is_the_identity_or_nothing(self, gelu: native.Gelu) -> None:
        slope = torch.tensor([-(2.0**60), -50.0, 50.0, 2.0**60])
        value = gelu.forward(slope, torch.empty(4))
        assert value.tolist() == pytest.approx([0, 0, 50.0, 2.0**60], abs=1e-15)
        assert slope.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-15)

    def test_the_processors_flags_are_left_alone(self, gelu: native.Gelu) -> None:
        """A library linked with -ffast-math would make the whole process flush denormal numbers to 0."""
        assert float(torch.tensor(1e-40) * 1.0) != 0


@needs_compiler
class TestPriorChain:
    @pytest.fixture
    def prior(self) -> EBMPrior:
        torch.manual_seed(3)
        return EBMPrior(PriorConfig(latent_dim=5, width=24, depth=3, steps=20, sigma=0.8))

    def end(self, prior: EBMPrior) -> torch.Tensor:
        return prior.sample(9, torch.Generator().manual_seed(4))

    def test_it_takes_part(self, prior: EBMPrior, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        kernel = native.Gelu.backward
        monkeypatch.setattr(native.Gelu, "backward", lambda *given: calls.append(1) or kernel(*given))
        self.end(prior)
        assert len(calls) == 20

    def test_the_chain_is_the_same_with_and_without(self, prior: EBMPrior, monkeypatch: pytest.MonkeyPatch) -> None:
        with_kernels = self.end(prior)
        monkeypatch.setenv(native.SWITCH, "0")
        native.load.cache_clear()
        without = self.end(prior)
        torch.testing.assert_close(with_kernels, without, rtol=1e-4, atol=1e-5)
        assert not torch.equal(with_kernels, without)  # else the switch did nothing

    def test_float64_is_torchs(self) -> None:
        assert native.gelu(torch.zeros(1, dtype=torch.float64), 1) is None

    def test_so_are_great_batches(self) -> None:
        assert native.gelu(torch.zeros(1), native.FEW + 1) is None


CELLS = ("lstm", "gru")
Outcome = dict[str, torch.Tensor]


class Sentences:
    """A recurrence with random weights, inputs and slopes over sentences of these lengths."""

    def __init__(self, cell: str, lengths: list[int], width: int, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        self.cell, self.gates = cell, recurrence.CELLS[cell].gates * width
        self.packing = recurrence.pack(torch.tensor(lengths), max(lengths), torch.device("cpu"))
        batch, tokens = len(lengths), sum(lengths)
        self.weight = (
            torch.randn(self.gates, width, generator=source) / width**0.5
        )  # errors do not grow along a sentence
        self.bias = torch.randn(self.gates, generator=source)
        self.inputs = 2 * torch.randn(tokens, self.gates, generator=source)
        self.own = torch.randn(batch, self.gates, generator=source)
        self.hidden, self.state = torch.randn(2, batch, width, generator=source)
        self.slope = torch.randn(tokens, width, generator=source)

    def run(self, kind: str, dtype: torch.dtype = torch.float32, states: torch.dtype = torch.float32) -> Outcome:
        """States and gradients by `compiled` or by `torch`, with products in `dtype` and the rest in that of states."""
        lstm = self.cell == "lstm"
        weight, bias = self.weight.to(states), None if lstm else self.bias.to(states)
        if kind == "torch":
            made = recurrence.CELLS[self.cell](self.packing, weight, bias, dtype)
        else:
            made = recurrence.packed(self.cell, self.packing, weight, bias, dtype)
            assert isinstance(made, recurrence.Compiled)
        entered = [x.to(states) for x in (self.inputs, self.own, self.hidden)]
        found = {"states": made.forward(*entered, self.state.to(states) if lstm else None).clone()}
        slopes = made.backward(self.slope.to(states, copy=True))
        found |= {name: value.clone() for name, value in slopes._asdict().items() if value is not None}
        return {**found, "products": made.recurrent_slopes().clone(), "weight": made.weight_slope()}


def difference(found: Outcome, right: Outcome) -> float:
    """The largest root mean square of any difference, in units of what it is of, and at least of 1: sums cancel."""
    assert found.keys() == right.keys()
    pairs = [(found[name].double(), right[name].double()) for name in found]
    return max(float((one - other).norm() / other.norm().clamp(min=other.numel() ** 0.5)) for one, other in pairs)


@needs_compiler
class TestTimeStep:
    @settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        cell=st.sampled_from(CELLS),
        lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
        width=st.integers(1, 40),
        seed=st.integers(0, 2**20),
    )
    def test_it_is_torchs_up_to_rounding(self, cell: str, lengths: list[int], width: int, seed: int) -> None:
        """Against torch in float64: in float32, and in bf16, where torch's own way keeps the same bound."""
        case = Sentences(cell, lengths, width, seed)
        exact = case.run("torch", torch.float64, torch.float64)
        assert difference(case.run("compiled"), exact) < 3e-6
        assert difference(case.run("compiled", torch.bfloat16), exact) < 0.05
        assert difference(case.run("torch", torch.bfloat16), exact) < 0.05

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("cell", CELLS)
    def test_a_chain_gets_the_same_without_the_gradients_of_words(self, cell: str, dtype: torch.dtype) -> None:
        case, lstm = Sentences(cell, [5, 4, 4, 1], 24, 3), cell == "lstm"
        found = []
        for of_words in (True, False):
            bias = None if lstm else case.bias
            made = recurrence.packed(cell, case.packing, case.weight, bias, dtype, of_words)
            made.forward(case.inputs, case.own, case.hidden, case.state if lstm else None)
            found.append(made.backward(case.slope.clone()))
        whole, alone = found
        assert alone.inputs is None
        for one, other in zip(whole[1:], alone[1:], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)

    @pytest.mark.parametrize("of_words", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("cell", CELLS)
    def test_two_threads_share_a_batch(self, cell: str, dtype: torch.dtype, of_words: bool) -> None:
        """The same numbers up to the rounding of products of fewer rows."""
        lstm, lengths = cell == "lstm", [9, 9, 8, *[5] * 12, *[1] * 9]
        case = Sentences(cell, lengths, 24, 3)
        found = []
        for parts in ([slice(0, 24)], recurrence.halves(case.packing)):
            bias = None if lstm else case.bias
            made = recurrence.packed(cell, case.packing, case.weight, bias, dtype, of_words)
            assert isinstance(made, recurrence.Compiled)
            made.parts = parts
            states = made.forward(case.inputs, case.own, case.hidden, case.state if lstm else None).clone()
            slopes = made.backward(case.slope.clone())._asdict().items()
            found.append({"states": states} | {name: slope for name, slope in slopes if slope is not None})
        assert difference(*found) < (3e-6 if dtype == torch.float32 else 0.03)
        assert len(parts) == 2
        assert [part.stop - part.start for part in parts] == [8, 16]  # 51 of 95 words, and the rest

    def test_few_sentences_stay_together_and_faults_come_out(self) -> None:
        assert recurrence.halves(Sentences("lstm", [3] * 15, 4, 0).packing) == [slice(0, 15)]

        def work(part: slice) -> None:
            raise ZeroDivisionError(part.start)

        with pytest.raises(ZeroDivisionError):
            recurrence.side_by_side(work, [slice(0, 8), slice(8, 16)])

    @pytest.mark.parametrize("cell", CELLS)
    def test_states_are_rounded_to_the_nearest(self, cell: str) -> None:
        case = Sentences(cell, [40, 31, 2], 33, 5)
        weight, bias = case.weight, None if cell == "lstm" else case.bias
        made = recurrence.packed(cell, case.packing, weight, bias, torch.bfloat16)
        states = made.forward(case.inputs, case.own, case.hidden, case.state if cell == "lstm" else None)
        assert torch.equal(made.narrow, states.bfloat16())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("cell", CELLS)
    def test_what_is_no_number_stays_none(self, cell: str, dtype: torch.dtype) -> None:
        case = Sentences(cell, [3, 3], 20, 1)
        case.hidden[1, 4] = float("nan")
        found = case.run("compiled", dtype)
        first, *others = found["states"].view(3, 2, 20)[:, 1].isnan().any(1).tolist()
        assert [first, *others] == [True] * 3
        assert found["states"].view(3, 2, 20)[:, 0].isfinite().all()
        assert found["hidden"][1].isnan().any()
        assert found["hidden"][0].isfinite().all()

    @pytest.mark.parametrize("cell", CELLS)
    def test_great_and_infinite_inputs_saturate(self, cell: str) -> None:
        case = Sentences(cell, [2, 2], 16, 1)
        case.inputs[0], case.inputs[1] = 3e38, -3e38
        assert all(value.isfinite().all() for value in case.run("compiled").values())

    def test_float64_and_fp16_are_torchs(self) -> None:
        assert native.time_step("lstm", torch.zeros(1, dtype=torch.float64), torch.float64) is None
        assert native.time_step("lstm", torch.zeros(1), torch.float16) is None

    def test_so_are_steps_that_many_threads_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = Sentences("lstm", [2], 4, 0)
        monkeypatch.setattr(recurrence, "WORTH_SHARING", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        made = recurrence.packed("lstm", case.packing, case.weight, None, torch.float32)
        assert type(made) is recurrence.PackedLSTM

    @pytest.mark.parametrize("cell", CELLS)
    def test_so_are_all_where_it_is_switched_off(self, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(native.SWITCH, "0")
        native.load.cache_clear()
        case = Sentences(cell, [2], 4, 0)
        made = recurrence.packed(cell, case.packing, case.weight, case.bias, torch.float32)
        assert type(made) is recurrence.CELLS[cell]


@needs_compiler
class TestSoftmax:
    @pytest.fixture
    def softmax(self) -> native.Softmax:
        made = native.softmax(torch.zeros(1), torch.float32)
        assert made is not None
        return made

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("tokens", "classes"), [(1, 1), (7, 16), (5, 1003)])
    def test_both_passes_are_those_of_float64(
        self, softmax: native.Softmax, dtype: torch.dtype, tokens: int, classes: int
    ) -> None:
        """Of the same logits; what is written takes one rounding to their precision."""
        source = torch.Generator().manual_seed(classes)
        logits = (8 * torch.randn(tokens, classes, generator=source)).to(dtype)
        targets = torch.randint(classes, (tokens,), generator=source)
        slope = torch.randn(tokens, generator=source)
        exact = logits.double()
        normaliser, log_probs = softmax.normaliser(logits, targets)
        torch.testing.assert_close(normaliser.double(), exact.logsumexp(1), rtol=3e-7, atol=1e-5)
        right = exact.log_softmax(1).gather(1, targets[:, None])[:, 0]
        torch.testing.assert_close(log_probs.double(), right, rtol=3e-7, atol=1e-5)
        wanted = exact.softmax(1) - torch.nn.functional.one_hot(targets, classes)
        rounding = 2.0**-8 if dtype == torch.bfloat16 else 5e-6  # of the exponent, logits are of some 30
        for first, part in ((0, slice(0, classes // 2)), (classes // 2, slice(classes // 2, classes))):
            of_bias = torch.ones(part.stop - part.start)
            found = softmax.excess(logits[:, part].contiguous(), targets, normaliser, slope, first, of_bias)
            torch.testing.assert_close(found.double(), wanted[:, part], rtol=rounding, atol=1e-5)
            torch.testing.assert_close(of_bias.double(), 1 - slope.double() @ wanted[:, part], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_far_apart_or_no_number(self, softmax: native.Softmax, dtype: torch.dtype) -> None:
        nan, inf = float("nan"), float("inf")
        rows = [[-3e4, 3e4], [-inf, -2.0], [nan, 1.0], [1.0, -nan], [inf, 0.0]]
        logits, targets = torch.tensor(rows, dtype=dtype), torch.tensor([1, 1, 1, 0, 0])
        normaliser, log_probs = softmax.normaliser(logits, targets)
        assert log_probs[:2].tolist() == [0, 0]
        assert log_probs[2:].isnan().all()
        assert normaliser[:2].tolist() == logits[[0, 1], 1].tolist()

    def test_other_precisions_and_many_threads_are_torchs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert native.softmax(torch.zeros(1, dtype=torch.float64), torch.float64) is None
        assert native.softmax(torch.zeros(1), torch.float16) is None
        monkeypatch.setattr(torch, "get_num_threads", lambda: native.FEW_THREADS + 1)
        assert native.softmax(torch.zeros(1), torch.float32) is None


@pytest.mark.usefixtures("home_of_its_own")
class TestWithout:
    """What happens where it cannot be compiled: nothing but that torch does it."""

    def chain(self) -> torch.Tensor:
        prior = EBMPrior(PriorConfig(latent_dim=3, width=8, steps=3))
        return langevin.run(torch.zeros(2, 3), prior.frozen(), prior.chain(), torch.Generator().manual_seed(1))

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(native.SWITCH, "0")
        assert native.load() is None
        assert self.chain().isfinite().all()
        assert native.status() == "switched off by TEXTEBM_NATIVE=0"

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
        assert native.load() is None
        assert self.chain().isfinite().all()
        assert native.status() == "not in use: no C compiler was found"

    @pytest.mark.parametrize("script", ["exit 1", 'while [ "$1" != -o ]; do shift; done; echo broken > "$2"'])
    def test_a_compiler_that_fails_or_writes_rubbish(
        self, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = tmp_path / "cc"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CC", str(fake))
        assert native.load() is None
        assert self.chain().isfinite().all()
        assert native.status() == "not in use: they could not be compiled"

    def test_a_home_that_is_a_file(self, home_of_its_own: Path) -> None:
        home_of_its_own.write_text("")
        assert native.load() is None
        assert self.chain().isfinite().all()


@needs_compiler
def test_it_is_compiled_once(home_of_its_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(native.load(), ctypes.CDLL)
    (built,) = (home_of_its_own / "native").iterdir()
    native.load.cache_clear()
    monkeypatch.setattr(native, "compile_into", lambda *given: pytest.fail("compiled again"))
    assert native.load() is not None
    assert built.stat().st_size < 400_000
    assert native.status() == "in use"
    assert list((home_of_its_own / "native").iterdir()) == [built]
