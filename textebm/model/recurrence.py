"""LSTM and GRU over sentences of different lengths, without padding and with an analytic gradient.

A chain asks for the same recurrence and its gradient many times, for the same words. So what the words contribute to
the gates is computed by the caller, once; sentences stand in order of falling length, and a time step works on those
that still go on; no autograd graph is made; and everything is written into tensors that are made once.
`PackedLSTM` and `PackedGRU` do so in torch, on any device. On a CPU, where a compiler is at hand, `CompiledLSTM` and
`CompiledGRU` do what lies between two matrix products in one pass in C (`textebm/native`).

Layout: *packed*, time-major. Row `starts[t] + j` of a packed tensor is word t of the j-th longest sentence.
The equations and the order of the gates (LSTM: i, f, g, o; GRU: r, u, n) are those of torch.nn.LSTM and torch.nn.GRU.
"""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from textebm import native


class Packing(NamedTuple):
    """Where the words of a batch of padded sentences stand when packed.

    order: (batch,) sentences from the longest to the shortest. inverse: (batch,) the place of each sentence in it.
    positions: (tokens,) place of each word in the flattened (batch, time) matrix.
    before: (tokens,) row of the state before each word, among (batch + tokens) rows: initial states, then packed ones.
    sizes: sentences that go on at each step; starts: the step's first row (both on the host).
    """

    order: Int[Tensor, " batch"]
    inverse: Int[Tensor, " batch"]
    positions: Int[Tensor, " tokens"]
    before: Int[Tensor, " tokens"]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Words of all sentences, ends included."""
        return self.starts[-1] + self.sizes[-1]

    def steps(self) -> list[slice]:
        """The rows of each time step."""
        return [slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True)]


def pack(lengths: Int[Tensor, " batch"], time: int, device: torch.device) -> Packing:
    """Plan a packed batch, on the host.

    Args:
        lengths: words of each sentence, at least 1, on the CPU (on a GPU, this waits for it).
        time: columns of the padded matrix.
        device: where the plan's tensors go.
    """
    known = lengths.cpu().numpy()
    order = np.argsort(-known, kind="stable")
    sizes = (known[None, :] > np.arange(known.max())[:, None]).sum(1)  # (time,)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sentence = np.concatenate([np.arange(size) for size in sizes])
    step = np.repeat(np.arange(len(sizes)), sizes)
    before = np.where(step == 0, sentence, len(known) + starts[np.maximum(step - 1, 0)] + sentence)
    arrays = (order, np.argsort(order), order[sentence] * time + step, before)
    by_length, inverse, positions, preceding = (to_device(torch.from_numpy(array), device) for array in arrays)
    return Packing(by_length, inverse, positions, preceding, tuple(sizes.tolist()), tuple(starts.tolist()))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copied without making the host wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


WORTH_SHARING = 32_000_000
"""Multiplications of a time step from which CPU threads share it: for fewer, waking them costs what they save."""


def worth_sharing(weight: Float[Tensor, "gates hidden"], batch: int) -> bool:
    """Whether a time step is so large that all of a CPU's threads should share it."""
    return batch * weight.numel() >= WORTH_SHARING


@contextmanager
def fitting_threads(weight: Float[Tensor, "gates hidden"], batch: int) -> Iterator[None]:
    """One CPU thread for a recurrence of steps too small to be shared, else all of them."""
    threads = torch.get_num_threads()
    if weight.device.type != "cpu" or threads == 1 or worth_sharing(weight, batch):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Slopes(NamedTuple):
    """What a backward pass found: gradients in everything that entered the recurrence but the recurrent weights.

    Those in `inputs` are None where they were not wanted.
    """

    inputs: Float[Tensor, "tokens gates"] | None
    per_sentence: Float[Tensor, "batch gates"]
    hidden: Float[Tensor, "batch hidden"]
    cell: Float[Tensor, "batch hidden"] | None


class PackedRecurrence(ABC):
    """One layer of recurrence over one packed batch: forward, then backward, as often as asked.

    What `forward` and `backward` return is overwritten by the next call.
    """

    gates: int
    """Gates a unit."""
    slopes: Tensor
    """(rows, 4 hidden): what a backward pass writes about words; what the columns are is a cell's own affair."""

    def __init__(
        self,
        packing: Packing,
        weight: Float[Tensor, "gates hidden"],
        bias: Tensor | None,
        dtype: torch.dtype,
        of_words: bool = True,
    ) -> None:
        """Make the working space.

        Args:
            packing: of the batch.
            weight: recurrent weights, rows in the order of torch's gates; detached.
            bias: of a GRU's recurrent products, (3 hidden,); an LSTM has none of its own.
            dtype: of the recurrent products; the rest stays in that of `weight`.
            of_words: whether gradients in the inputs, and in the weights, will be asked for; a chain asks for none.
        """
        self.packing, self.rows, self.of_words = packing, packing.steps(), of_words
        self.weight, self.bias = weight.to(dtype), bias
        self.weight_forth = self.weight.T.contiguous()  # as the forward product reads it: a third faster in fp32
        self.width = weight.shape[1]
        self.like = self.start = weight  # until `forward` sets where it starts
        self.mixed = dtype != weight.dtype
        self.states = self._space(self.width)
        self.narrow = self._space(self.width, dtype) if self.mixed else self.states  # the states as products take them

    def _space(self, width: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.like.new_empty(self.packing.tokens, width, dtype=dtype or self.like.dtype)

    def _of_words(self) -> Tensor | None:
        """After `backward`: gradients in the inputs, where they are wanted."""
        return self.slopes if self.of_words else None

    def _space_of_activations(self) -> Tensor:
        return self._space(self.gates * self.width)

    def _space_of_slopes(self) -> Tensor:
        return self._space(4 * self.width)

    def _add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """total += left @ right, with the product in this recurrence's precision."""
        if self.mixed:
            total.add_(left @ right)
        else:
            total.addmm_(left, right)

    @abstractmethod
    def forward(
        self,
        inputs: Float[Tensor, "tokens gates"],
        per_sentence: Float[Tensor, "batch gates"],
        hidden: Float[Tensor, "batch hidden"],
        cell: Float[Tensor, "batch hidden"] | None,
    ) -> Float[Tensor, "tokens hidden"]:
        """The hidden states.

        Args:
            inputs: what each word adds to the gates, packed, in the precision of the products.
            per_sentence: what z and the bias add to them at every word; sentences in the packing's order, as below.
            hidden: initial hidden states.
            cell: initial cell states (None for a GRU).
        """

    @abstractmethod
    def backward(self, slope: Float[Tensor, "tokens hidden"]) -> Slopes:
        """Gradients from that in the hidden states, at the point of the last `forward`; `slope` is used up."""

    @abstractmethod
    def recurrent_slopes(self) -> Float[Tensor, "tokens gates"]:
        """After `backward`: the gradient in each recurrent product."""

    def weight_slope(self) -> Float[Tensor, "gates hidden"]:
        """After `backward`: the gradient in the recurrent weights."""
        product = self.recurrent_slopes().to(self.weight.dtype).T @ self._before(self.states, self.start).to(
            self.weight.dtype
        )
        return product.to(self.like.dtype)

    def _before(self, packed: Tensor, start: Tensor) -> Float[Tensor, "tokens hidden"]:
        """Of each word, the state before it."""
        return torch.cat([start, packed]).index_select(0, self.packing.before)

    def _steps_back(self) -> Iterator[tuple[slice, int]]:
        """From the last step to the first: its rows, and how many of its sentences go on after it."""
        following = 0
        for rows, size in zip(reversed(self.rows), reversed(self.packing.sizes), strict=True):
            yield rows, following
            following = size


class PackedLSTM(PackedRecurrence):
    """c = σ(f) c + σ(i) tanh(g), h = σ(o) tanh(c)."""

    gates = 4

    def __init__(
        self, packing: Packing, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, of_words: bool = True
    ) -> None:
        super().__init__(packing, weight, bias, dtype, of_words)
        self.activations, self.slopes = self._space_of_activations(), self._space_of_slopes()
        self.cells, self.tanh_cells = self._space(self.width), self._space(self.width)

    def forward(
        self,
        inputs: Float[Tensor, "tokens gates"],
        per_sentence: Float[Tensor, "batch gates"],
        hidden: Float[Tensor, "batch hidden"],
        cell: Float[Tensor, "batch hidden"] | None,
    ) -> Float[Tensor, "tokens hidden"]:
        """The hidden states (see `PackedRecurrence.forward`)."""
        assert cell is not None
        self.start, self.start_cell = hidden, cell
        width, weight = self.width, self.weight_forth
        before, cells = hidden.to(self.weight.dtype), cell
        for rows, size in zip(self.rows, self.packing.sizes, strict=True):
            gates = torch.add(inputs[rows], per_sentence[:size], out=self.activations[rows])
            self._add_product(gates, before[:size], weight)
            gates[:, : 2 * width].sigmoid_()
            tanh_(gates[:, 2 * width : 3 * width])
            gates[:, 3 * width :].sigmoid_()
            i, f, g, o = gates.chunk(4, dim=1)
            cells = torch.mul(f, cells[:size], out=self.cells[rows]).addcmul_(i, g)
            tanh_cells = tanh_(self.tanh_cells[rows].copy_(cells))
            before = torch.mul(o, tanh_cells, out=self.states[rows])
            if self.mixed:
                before = self.narrow[rows].copy_(before)
        return self.states

    def backward(self, slope: Float[Tensor, "tokens hidden"]) -> Slopes:
        """Gradients (see `PackedRecurrence.backward`)."""
        through = self._local_slopes()
        words = self.slopes.view(-1, 4, self.width)
        forget = self.activations.view(-1, 4, self.width)[:, 1]
        cell = torch.zeros_like(self.start)
        total = self.like.new_zeros(len(self.start), 4 * self.width)
        recurrent = self.slopes[:0]
        for rows, following in self._steps_back():
            size, hidden = rows.stop - rows.start, slope[rows]
            if following:
                self._add_product(hidden[:following], recurrent, self.weight)
            into_cell = cell[:size].addcmul_(hidden, through[rows])
            words[rows, 3].mul_(hidden)
            words[rows, :3].mul_(into_cell[:, None])
            into_cell.mul_(forget[rows])
            total[:size].add_(self.slopes[rows])
            recurrent = self.slopes[rows].to(self.weight.dtype)
        first = (recurrent @ self.weight).to(self.like.dtype)
        return Slopes(self._of_words(), total, first, cell)

    def _local_slopes(self) -> Float[Tensor, "tokens hidden"]:
        """Fill `slopes` with what the gradients in c and (last quarter) in h are multiplied by to become the gates'.

        Returns what the gradient in h is multiplied by to become that in c. All words at once, before the loop.
        """
        i, f, g, o = self.activations.chunk(4, dim=1)
        into_i, into_f, into_g, into_o = self.slopes.chunk(4, dim=1)
        new = torch.mul(i, g)
        kept = torch.mul(f, self._before(self.cells, self.start_cell))
        torch.addcmul(new, new, i, value=-1, out=into_i)  # g i (1 − i)
        torch.addcmul(kept, kept, f, value=-1, out=into_f)  # c f (1 − f)
        torch.addcmul(i, new, g, value=-1, out=into_g)  # i (1 − g²)
        torch.addcmul(self.states, self.states, o, value=-1, out=into_o)  # tanh(c) o (1 − o)
        return torch.addcmul(o, self.states, self.tanh_cells, value=-1, out=new)  # o (1 − tanh² c)

    def recurrent_slopes(self) -> Float[Tensor, "tokens gates"]:
        """After `backward`: the gradient in each recurrent product."""
        return self.slopes


class PackedGRU(PackedRecurrence):
    """n = tanh(inputs + σ(r) (W h + b)), h = n + σ(u) (h − n)."""

    gates = 3

    def __init__(
        self, packing: Packing, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, of_words: bool = True
    ) -> None:
        super().__init__(packing, weight, bias, dtype, of_words)
        self.activations, self.slopes = self._space_of_activations(), self._space_of_slopes()
        self.candidates = self._space(self.width)  # W h + b of n

    def forward(
        self,
        inputs: Float[Tensor, "tokens gates"],
        per_sentence: Float[Tensor, "batch gates"],
        hidden: Float[Tensor, "batch hidden"],
        cell: Float[Tensor, "batch hidden"] | None,
    ) -> Float[Tensor, "tokens hidden"]:
        """The hidden states (see `PackedRecurrence.forward`)."""
        assert self.bias is not None
        self.start = hidden
        width, weight = self.width, self.weight_forth
        states, before = hidden, hidden.to(self.weight.dtype)
        for rows, size in zip(self.rows, self.packing.sizes, strict=True):
            gates = torch.add(inputs[rows], per_sentence[:size], out=self.activations[rows])
            products = before[:size] @ weight
            products = products.to(self.like.dtype).add_(self.bias)
            gates[:, : 2 * width].add_(products[:, : 2 * width]).sigmoid_()
            r, u, n = gates.chunk(3, dim=1)
            candidates = self.candidates[rows].copy_(products[:, 2 * width :])
            tanh_(n.addcmul_(r, candidates))
            states = torch.lerp(n, states[:size], u, out=self.states[rows])
            before = self.narrow[rows].copy_(states) if self.mixed else states
        return self.states

    def backward(self, slope: Float[Tensor, "tokens hidden"]) -> Slopes:
        """Gradients (see `PackedRecurrence.backward`)."""
        self._local_slopes()
        words = self.slopes.view(-1, 4, self.width)
        update = self.activations.view(-1, 3, self.width)[:, 1]
        total = self.like.new_zeros(len(self.start), 4 * self.width)
        carried = self.start[:0]
        for rows, following in self._steps_back():
            size, hidden = rows.stop - rows.start, slope[rows]
            hidden[:following].add_(carried)
            words[rows].mul_(hidden[:, None])
            total[:size].add_(self.slopes[rows])
            recurrent = self.slopes[rows, : 3 * self.width].to(self.weight.dtype)
            carried = torch.mul(hidden, update[rows])
            self._add_product(carried, recurrent, self.weight)
        return Slopes(self._of_words(), self._of_inputs(total), carried, None)

    def _of_words(self) -> Tensor | None:
        return self._of_inputs(self.slopes) if self.of_words else None

    def _of_inputs(self, slopes: Float[Tensor, "rows four"]) -> Float[Tensor, "rows gates"]:
        """r, u and n out of r, u, the recurrent product of n, and n."""
        width = self.width
        return torch.cat([slopes[:, : 2 * width], slopes[:, 3 * width :]], dim=1)

    def _local_slopes(self) -> None:
        """Fill `slopes` with what the gradient in h is multiplied by: r, u, recurrent product of n, n."""
        r, u, n = self.activations.chunk(3, dim=1)
        into_r, into_u, into_product, into_n = self.slopes.chunk(4, dim=1)
        difference = self._before(self.states, self.start).sub_(n)
        torch.addcmul(u, u, u, value=-1, out=into_u).mul_(difference)  # (h − n) u (1 − u)
        rest = torch.rsub(u, 1)
        torch.mul(rest, n, out=into_n).mul_(n)
        torch.sub(rest, into_n, out=into_n)  # (1 − u) (1 − n²)
        torch.mul(into_n, r, out=into_product)
        torch.addcmul(into_product, into_product, r, value=-1, out=into_r).mul_(self.candidates)

    def recurrent_slopes(self) -> Float[Tensor, "tokens gates"]:
        """After `backward`: the gradient in each recurrent product."""
        return self.slopes[:, : 3 * self.width]


FEWEST_TO_SHARE = 16
"""Sentences of a batch from which two threads take half of its words each."""

Arguments = Callable[[slice], tuple[Tensor | None, ...]]


def halves(packing: Packing) -> list[slice]:
    """The sentences of a batch in two parts of about as many words, or in one where they are few."""
    sizes = np.array(packing.sizes)
    batch = packing.sizes[0]
    if batch < FEWEST_TO_SHARE:
        return [slice(0, batch)]
    words = (sizes[:, None] > np.arange(batch)).sum(0).cumsum()  # of the longest, the two longest, ...
    middle = int(np.searchsorted(words, words[-1] / 2)) + 1
    return [slice(0, middle), slice(middle, batch)]


def side_by_side(work: Callable[[slice], None], parts: list[slice]) -> None:
    """Do the first part here and the second in a thread of its own; torch and C let go of Python while they compute."""
    first, *others = parts
    waiting = [_second_thread().submit(torch.no_grad()(work), part) for part in others]
    try:
        work(first)
    finally:
        for other in waiting:
            other.result()


@functools.cache
def _second_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "textebm-recurrence", torch.set_num_threads, (1,))


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_second_thread.cache_clear)


class Compiled(PackedRecurrence):
    """All that lies between two matrix products in one pass, in C. What passes is in the order of its kernels.

    Inputs and activations are kept in the precision of the products: half of what a pass reads and writes.
    """

    def __init__(
        self,
        packing: Packing,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        of_words: bool,
        step: native.TimeStep,
    ) -> None:
        """Make the working space (see `PackedRecurrence.__init__`).

        Args:
            packing: of the batch.
            weight: recurrent weights.
            bias: of a GRU's recurrent products.
            dtype: of the recurrent products.
            of_words: whether gradients in the inputs will be asked for; else every step overwrites those of the last.
            step: the compiled time step of this cell.
        """
        super().__init__(packing, weight, bias, dtype, of_words)
        self.step, batch, gates = step, packing.sizes[0], self.gates * self.width
        self.into_gates, self.into_states = (self.weight.new_empty(batch, size) for size in (gates, self.width))
        self.narrow_states = self.narrow if self.mixed else None
        self.narrow_slopes = self.weight.new_empty(batch, gates) if self.mixed else None
        self.parts = halves(packing) if torch.get_num_threads() > 1 else [slice(0, batch)]

    def _space_of_activations(self) -> Tensor:
        return self._space(self.gates * self.width, self.weight.dtype)

    def _space_of_slopes(self) -> Tensor:
        if self.of_words:
            return super()._space_of_slopes()
        return self.like.new_empty(self.packing.sizes[0], 4 * self.width)

    def _narrow_slopes_of(self, part: slice) -> Tensor | None:
        return None if self.narrow_slopes is None else self.narrow_slopes[part]

    def _narrow(self, inputs: Float[Tensor, "tokens gates"]) -> Tensor:
        return inputs.to(self.weight.dtype).contiguous()

    def _forth(self, hidden: Float[Tensor, "batch hidden"], tensors: Arguments) -> Float[Tensor, "tokens hidden"]:
        """Every time step, from the first; `tensors` are the kernel's, those of some sentences by themselves."""
        start = hidden.to(self.weight.dtype)

        def work(part: slice) -> None:
            given, into = tensors(part), self.into_gates[part]
            before, row = start[part], -1
            for rows, size in zip(self.rows, self.packing.sizes, strict=True):
                count = min(size, part.stop) - part.start
                if count <= 0:
                    return
                torch.mm(before[:count], self.weight_forth, out=into[:count])
                first = rows.start + part.start
                self.step.forward(first, count, self.width, row, *given)
                before, row = self.narrow[first : first + count], first

        side_by_side(work, self.parts)
        return self.states

    def _back(self, tensors: Arguments) -> Float[Tensor, "batch hidden"]:
        """Every time step, from the last; returns the gradient in the first recurrent product's states."""
        of_states = self.like.new_empty(self.packing.sizes[0], self.width)

        def work(part: slice) -> None:
            given, into_states = tensors(part), self.into_states[part]
            narrow = self._narrow_slopes_of(part)
            recurrent, starts = self.weight[:0], self.packing.starts
            for step in reversed(range(len(self.rows))):
                count = min(self.packing.sizes[step], part.stop) - part.start
                if count <= 0:
                    continue
                if len(recurrent):
                    torch.mm(recurrent, self.weight, out=into_states[: len(recurrent)])
                first, row = starts[step] + part.start, starts[step - 1] + part.start if step else -1
                into = first if self.of_words else part.start
                self.step.backward(first, count, self.width, row, len(recurrent), into, *given)
                written = self.slopes[into : into + count, : self.gates * self.width]
                recurrent = written if narrow is None else narrow[:count]
            of_states[part] = recurrent @ self.weight

        side_by_side(work, self.parts)
        return of_states


class CompiledLSTM(Compiled, PackedLSTM):
    """`PackedLSTM` with a compiled time step."""

    def forward(
        self,
        inputs: Float[Tensor, "tokens gates"],
        per_sentence: Float[Tensor, "batch gates"],
        hidden: Float[Tensor, "batch hidden"],
        cell: Float[Tensor, "batch hidden"] | None,
    ) -> Float[Tensor, "tokens hidden"]:
        """The hidden states (see `PackedRecurrence.forward`)."""
        assert cell is not None
        self.start, self.start_cell = hidden, cell.contiguous()
        words, own, cells = self._narrow(inputs), per_sentence.contiguous(), self.start_cell
        kept = (self.activations, self.cells, self.tanh_cells, self.states, self.narrow_states)
        return self._forth(hidden, lambda part: (words, own[part], self.into_gates[part], cells[part], *kept))

    def backward(self, slope: Float[Tensor, "tokens hidden"]) -> Slopes:
        """Gradients (see `PackedRecurrence.backward`)."""
        cell, total = torch.zeros_like(self.start_cell), self.like.new_zeros(len(self.start), 4 * self.width)
        above, kept = slope.contiguous(), (self.activations, self.cells, self.tanh_cells)

        def tensors(part: slice) -> tuple[Tensor | None, ...]:
            given = (above, self.into_states[part], self.start_cell[part], *kept)
            return (*given, cell[part], total[part], self.slopes, self._narrow_slopes_of(part))

        hidden = self._back(tensors)
        return Slopes(self._of_words(), total, hidden, cell)


class CompiledGRU(Compiled, PackedGRU):
    """`PackedGRU` with a compiled time step."""

    def forward(
        self,
        inputs: Float[Tensor, "tokens gates"],
        per_sentence: Float[Tensor, "batch gates"],
        hidden: Float[Tensor, "batch hidden"],
        cell: Float[Tensor, "batch hidden"] | None,
    ) -> Float[Tensor, "tokens hidden"]:
        """The hidden states (see `PackedRecurrence.forward`)."""
        assert self.bias is not None
        self.start = hidden.contiguous()
        words, own, bias = self._narrow(inputs), per_sentence.contiguous(), self.bias.contiguous()
        kept = (bias, self.activations, self.candidates, self.states, self.narrow_states)
        return self._forth(hidden, lambda part: (words, own[part], self.into_gates[part], self.start[part], *kept))

    def backward(self, slope: Float[Tensor, "tokens hidden"]) -> Slopes:
        """Gradients (see `PackedRecurrence.backward`)."""
        carried, total = torch.empty_like(self.start), self.like.new_zeros(len(self.start), 4 * self.width)
        above, kept = slope.contiguous(), (self.activations, self.candidates, self.states)

        def tensors(part: slice) -> tuple[Tensor | None, ...]:
            given = (above, self.into_states[part], self.start[part], *kept)
            return (*given, carried[part], total[part], self.slopes, self._narrow_slopes_of(part))

        carried += self._back(tensors)
        return Slopes(self._of_words(), self._of_inputs(total), carried, None)


CELLS: dict[str, type[PackedRecurrence]] = {"lstm": PackedLSTM, "gru": PackedGRU}
COMPILED: dict[str, type[Compiled]] = {"lstm": CompiledLSTM, "gru": CompiledGRU}


def packed(
    cell_name: str,
    packing: Packing,
    weight: Float[Tensor, "gates hidden"],
    bias: Tensor | None,
    dtype: torch.dtype,
    of_words: bool = True,
) -> PackedRecurrence:
    """A recurrence over a packed batch, compiled where that is to be had and a time step is one thread's work.

    Args:
        cell_name: lstm or gru.
        packing: of the batch.
        weight: recurrent weights, detached.
        bias: of a GRU's recurrent products.
        dtype: of the recurrent products.
        of_words: whether gradients in the inputs, and in the weights, will be asked for.
    """
    alone = torch.get_num_threads() == 1 or not worth_sharing(weight, packing.sizes[0])
    step = native.time_step(cell_name, weight, dtype) if alone else None
    if step is None:
        return CELLS[cell_name](packing, weight, bias, dtype, of_words)
    return COMPILED[cell_name](packing, weight, bias, dtype, of_words, step)


def tanh_(x: Tensor) -> Tensor:
    """tanh in place. On a CPU by 2σ(2x) − 1, since torch's sigmoid is vectorised several times better than its tanh."""
    return x.tanh_() if x.is_cuda else x.mul_(2).sigmoid_().mul_(2).sub_(1)


class _Differentiable(torch.autograd.Function):
    """A packed recurrence as a function of its inputs, initial states and weights, for the learner."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own)
        cell_name: str,
        packing: Packing,
        dtype: torch.dtype,
        inputs: Tensor,
        per_sentence: Tensor,
        hidden: Tensor,
        cell: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """The hidden states."""
        ctx.recurrence = packed(cell_name, packing, weight, bias, dtype)
        with fitting_threads(weight, packing.sizes[0]):
            states: Tensor = ctx.recurrence.forward(inputs, per_sentence, hidden, cell)
        return states.detach()  # the recurrence keeps its own: with a history it would keep itself alive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients in all tensors that entered."""
        with fitting_threads(ctx.recurrence.weight, ctx.recurrence.packing.sizes[0]):
            slopes = ctx.recurrence.backward(slope.clone())
        of_bias = None if ctx.recurrence.bias is None else ctx.recurrence.recurrent_slopes().sum(0)
        return (None, None, None, *slopes, ctx.recurrence.weight_slope(), of_bias)


def differentiable(
    cell_name: str,
    packing: Packing,
    dtype: torch.dtype,
    inputs: Float[Tensor, "tokens gates"],
    per_sentence: Float[Tensor, "batch gates"],
    hidden: Float[Tensor, "batch hidden"],
    cell: Float[Tensor, "batch hidden"] | None,
    weight: Float[Tensor, "gates hidden"],
    bias: Float[Tensor, " gates"] | None,
) -> Float[Tensor, "tokens hidden"]:
    """Hidden states, differentiable once in every tensor given (see `PackedRecurrence`)."""
    tensors = (inputs, per_sentence, hidden, cell, weight, bias)
    result: Tensor = _Differentiable.apply(cell_name, packing, dtype, *tensors)  # type: ignore[no-untyped-call]
    return result
