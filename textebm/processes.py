"""Several processes that work together on one model: which one am I, how many are we, sums, what is agreed on.

`torchrun` and `accelerate launch` start them and say in the environment who each one is. `World` is a world of one
process: everything in it is done at once, and nothing of torch.distributed is imported. `Group` is one of several. All
that they tell each other is numbers and JSON; nothing is pickled.

Three kinds of waiting, each with its own patience:

- sums and decisions of a learning step: every process is in the same step, so one that does not answer for half an hour
  never will (`STEP`);
- what the first process does alone, such as to encode a corpus or to write a checkpoint: as long as it takes
  (`PATIENCE`);
- a process that has ended is noticed at once in both, since its connections close.

Decisions go through the CPU, so that no step waits for a GPU to make one.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from textebm.errors import ProcessError, TextebmError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

STEP = timedelta(minutes=30)
"""How long a process waits for the others within a step."""
PATIENCE = timedelta(days=7)
"""How long the others wait for what the first process does alone; its end is noticed at once all the same."""
FIRST_WORD = 0.3
"""Seconds that the first process has to tell an error of all, before another one tells it."""


INTERRUPTED = 130
"""Exit code of a command that was interrupted."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Which parts of a batch are worked on at once, and which of them are those of one process.

    A process's parts are those with the numbers from `first` on, of `size` samples each, the last one of what is left.
    """

    size: int
    """Samples of a part."""
    first: int
    """Number of this process's first part, counted through the whole batch."""
    rows: slice
    """The samples of its parts: rows of the batch, none or several in a row."""


def cut(samples: int, size: int, rank: int = 0, count: int = 1) -> Cut:
    """Divide the parts of a batch between processes: as many to each, one after the other; the last ones get the rest.

    Args:
        samples: of the batch.
        size: of a part, in samples.
        rank: number of the process, from 0.
        count: how many processes there are.
    """
    parts = -(-samples // size)
    each = -(-parts // count)
    first, end = min(rank * each, parts), min((rank + 1) * each, parts)
    return Cut(size, first, slice(min(first * size, samples), min(end * size, samples)))


def part_size(samples: int, full: int, micro_batch: int, count: int) -> int:
    """Samples of a part of a batch: what `micro_batch` says, and no more than a process's share of a full batch.

    So N processes work as one does with `micro_batch` = batch_size / N, rounded up, in smaller batches too.

    Args:
        samples: of this batch.
        full: samples of a full batch.
        micro_batch: as in the configuration; 0: no limit.
        count: how many processes there are.
    """
    share = -(-max(full, samples) // count)
    return min(micro_batch or share, share, samples)


class World:
    """A world of one process."""

    rank = 0
    """Number of this process, from 0."""
    count = 1
    """How many processes there are."""
    local_rank = 0
    """Number of this process on its machine, from 0."""
    local_count = 1
    """How many processes there are on its machine."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def owns(self, number: int) -> bool:
        """Whether the job with this number is this process's, where all take turns."""
        return number % self.count == self.rank

    def sum(self, tensors: "Sequence[Tensor]") -> None:
        """Put the sums over all processes in the place of tensors; all on one device, the same shapes everywhere.

        Raises:
            ProcessError: another process has ended, or does not answer.
        """

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process.

        Raises:
            ProcessError: another process has ended, or does not answer.
        """
        return flag

    def same(self, tensors: "Sequence[Tensor]") -> bool:
        """Whether these tensors hold the same bits in all processes.

        Raises:
            ProcessError: another process has ended, or does not answer.
        """
        return True

    def told(self, make: Callable[[], T]) -> T:
        """What the first process finds, in JSON types, by doing something alone; the others wait for it, and learn it.

        Raises:
            ProcessError: in the others, when it fails in the first.
        """
        return make()

    def first_then_all(self, make: Callable[[], T]) -> T:
        """What every process makes for itself: the first one before all others, who then find what it left in caches.

        Raises:
            ProcessError: in the others, when it fails in the first.
        """
        return make()

    def in_turn(
        self, jobs: int, make: Callable[[int], T], pack: Callable[[T], bytes], unpack: Callable[[bytes], T]
    ) -> Iterator[T]:
        """What is made of jobs 0, 1, 2 ... by processes in turn: all of it, in order, in the first; nothing elsewhere.

        Args:
            jobs: how many.
            make: does one.
            pack: turns what was made into bytes, for the journey.
            unpack: turns it back.

        Raises:
            ProcessError: another process has ended.
        """
        return map(make, range(jobs))

    def wait(self) -> None:
        """Until all processes are here, however long that takes.

        Raises:
            ProcessError: another process has ended.
        """

    def tells(self, error: BaseException) -> bool:
        """Whether this process is the one to tell a person of an error, which others may have too."""
        return True

    def leave(self) -> None:
        """End what `joined` began, when all has gone well."""


ALONE = World()
"""A world of one process."""


class Group(World):
    """A world of several processes; made by `joined`."""

    def __init__(self, rank: int, count: int, local_rank: int, local_count: int) -> None:
        """Use `joined`: torch's default process group must be there, with gloo for tensors on the CPU."""
        from torch import distributed

        self.rank, self.count, self.local_rank, self.local_count = rank, count, local_rank, local_count
        self.patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = distributed.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, timeout=timedelta(seconds=10)
        )

    def sum(self, tensors: "Sequence[Tensor]") -> None:
        """Put the sums over all processes in the place of tensors: in one message, with the same bits everywhere."""
        import torch
        from torch import distributed

        with torch.no_grad(), _answered():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            distributed.all_reduce(flat)
            for tensor, total in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process; the CPU is asked, and no GPU is waited for."""
        import torch
        from torch import distributed

        raised = torch.tensor(int(flag))
        with _answered():
            distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return bool(raised)

    def same(self, tensors: "Sequence[Tensor]") -> bool:
        """Whether these tensors hold the same bits in all processes, by sums of them as whole numbers."""
        import torch
        from torch import distributed

        with torch.no_grad(), _answered():
            bits = [tensor.detach().reshape(-1).view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
            mine = torch.stack(bits).cpu()
            largest = torch.cat([mine, -mine])
            distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        return bool((largest[: len(mine)] == -largest[len(mine) :]).all())

    def told(self, make: Callable[[], T]) -> T:
        """What the first process finds; an error in it ends the others, too."""
        if self.first:
            try:
                found = make()
            except BaseException as error:
                with contextlib.suppress(ProcessError):  # it is this error that counts
                    self._broadcast({"error": str(error), "exit_code": exit_code_of(error)})
                raise
            self._broadcast({"found": found})
            return found
        heard = self._broadcast(None)
        if "error" in heard:
            if heard["exit_code"] == INTERRUPTED:
                raise KeyboardInterrupt
            raise ProcessError(heard["error"], heard["exit_code"])
        learned: T = heard["found"]
        return learned

    def first_then_all(self, make: Callable[[], T]) -> T:
        """What every process makes for itself, after the first one."""
        made: list[T] = []
        self.told(lambda: made.append(make()))
        return made[0] if made else make()

    def in_turn(
        self, jobs: int, make: Callable[[int], T], pack: Callable[[T], bytes], unpack: Callable[[bytes], T]
    ) -> Iterator[T]:
        """What is made of jobs: in rounds of one job a process, so that memory is that of a round."""
        for begin in range(0, jobs, self.count):
            mine = begin + self.rank
            packed = pack(make(mine)) if mine < jobs else b""
            for content in self._gathered(packed)[: jobs - begin]:
                yield unpack(content)

    def wait(self) -> None:
        """Until all processes are here."""
        from torch import distributed

        with _answered():
            distributed.barrier(group=self.patient)

    def tells(self, error: BaseException) -> bool:
        """Whether nobody has told this error; that others are gone is told only where nobody has told why."""
        lost = isinstance(error, ProcessError) and error.lost
        if not self.first and not lost:  # a launcher soon ends who has lost another
            time.sleep(FIRST_WORD)  # an error of all is the first one's to tell
        said = hashlib.sha256(str(error).encode()).hexdigest()
        try:
            told = self.store.add("textebm/told", 0) > 0
            fresh = self.store.add(f"textebm/told/{said}", 1) == 1
            self.store.add("textebm/told", 1)
        except RuntimeError:  # who keeps the store is gone: there is nobody left to ask
            return True
        return fresh and not (lost and told)

    def leave(self) -> None:
        """End what `joined` began; where something has failed, to wait for others to end it would be to hang."""
        from torch import distributed

        distributed.destroy_process_group()

    def _broadcast(self, message: Any) -> Any:  # noqa: ANN401 (JSON)
        """A message of the first process, in every process."""
        import torch
        from torch import distributed

        content = json.dumps(message).encode() if self.first else b""
        size = torch.tensor(len(content))
        with _answered():
            distributed.broadcast(size, 0, group=self.patient)
            sent = _as_tensor(content, int(size))
            distributed.broadcast(sent, 0, group=self.patient)
        return json.loads(sent.numpy().tobytes())

    def _gathered(self, content: bytes) -> list[bytes]:
        """The content of every process, in the first one; nothing elsewhere."""
        import torch
        from torch import distributed

        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.rank] = len(content)
        with _answered():
            distributed.all_reduce(sizes, group=self.patient)
            sent = _as_tensor(content, int(sizes.max()))
            arrived = [torch.empty_like(sent) for _ in sizes] if self.first else None
            distributed.gather(sent, arrived, 0, group=self.patient)
        lengths = sizes.tolist()
        return [part.numpy().tobytes()[:n] for part, n in zip(arrived, lengths, strict=True)] if arrived else []


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that fails so."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, TextebmError) else 1


def _as_tensor(content: bytes, size: int) -> "Tensor":
    """Bytes as a tensor of so many, zeros behind them."""
    import torch

    return torch.frombuffer(bytearray(content.ljust(size, b"\0")), dtype=torch.uint8)


@contextmanager
def _answered() -> Iterator[None]:
    """Say what it means when others do not take part.

    Raises:
        ProcessError: they do not.
    """
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            "another process of this job has ended, or does not answer, and so this one ends, too; what was saved "
            "before is whole",
            lost=True,
        ) from error


def launched() -> int:
    """How many processes a launcher has started, as it says in the environment; 1 without a launcher."""
    told = os.environ.get("WORLD_SIZE", "1")
    return int(told) if told.isdecimal() else 1


_current: World = ALONE


def world() -> World:
    """The world of this process: `ALONE`, unless within `joined`."""
    return _current


@contextmanager
def joined() -> Iterator[World]:
    """Take part in the job that a launcher has started, where one has; else a world of one.

    Raises:
        UsageError: accelerate is missing, or a launcher has not said who this process is.
        ProcessError: the processes cannot meet.
    """
    global _current  # noqa: PLW0603 (a process is in one job, as it has one environment)
    if launched() == 1:
        yield ALONE
        return
    _current = _join()
    try:
        yield _current
    finally:
        _current = ALONE


def _join() -> Group:
    """Set up torch's process groups: gloo for the CPU, and NCCL for CUDA where there is any."""
    try:
        from accelerate import PartialState
    except ImportError:
        raise UsageError(
            f"{launched()} processes were started, which takes accelerate: pip install 'textebm[processes]'"
        ) from None
    import torch

    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UsageError(f"WORLD_SIZE is {launched()}, and {name} is not set: start with torchrun, which sets both")
    cuda = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else None
    try:
        state = PartialState(cpu=not cuda, backend=backend, timeout=STEP)
        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        return Group(state.process_index, state.num_processes, state.local_process_index, local_count)
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).partition("\n")[0]
        raise ProcessError(f"{launched()} processes were started, and cannot meet at {where}: {reason}") from error


def device_of(name: str, world: World) -> str:
    """The name of the device that a process takes of those that `name` means.

    Args:
        name: auto, cpu, cuda; or another, which is for one process.
        world: of the process.

    Raises:
        UsageError: several processes cannot share that device.
    """
    if world.count == 1 or name == "cpu":
        return name
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name not in ("auto", "cuda"):
        raise UsageError(f"--device {name} is one device, and there are {world.count} processes: --device cuda or cpu")
    devices = torch.cuda.device_count()
    if devices < world.local_count:
        raise UsageError(
            f"{world.local_count} processes were started on a machine with {devices} CUDA devices, and each takes one: "
            "start fewer (--nproc-per-node), or compute with --device cpu"
        )
    return f"cuda:{world.local_rank}"
