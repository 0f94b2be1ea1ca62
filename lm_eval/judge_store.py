"""Where trained judges are kept: a folder each, written so that no crash and no second process can leave half a judge.

A folder holds `judge.json` and one or two tensor files. The tensor files are named after their content and written
first; `judge.json` names them with their SHA-256, carries its own, and is replaced in one move. So whatever it names is
whole, or is known not to be.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textebm import plain_json, whole_files
from textebm.errors import JudgeError

LOCKS = find_spec("fcntl") is not None
"""Not on Windows; the files are whole even so, and at worst work is done twice."""

DESCRIPTION = "judge.json"
STALE_SECONDS = 3600


class DamagedJudgeError(Exception):
    """What is kept of a judge is not what was written."""


class JudgeStore:
    """The folder of one judge.

    Args:
        folder: of this judge; made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
        """What was saved last: facts, and groups of tensors on the CPU. None where nothing was.

        Raises:
            DamagedJudgeError: it is damaged.
        """
        from safetensors.torch import load

        path = self.folder / DESCRIPTION
        if not path.exists():
            return None
        try:
            described = plain_json.parse(path.read_bytes())
            body, files = described["body"], described["body"]["files"]
            if described["sha256"] != _sha256(_canonical(body)):
                raise DamagedJudgeError(f"{path.name} is not what was written")
            groups = {}
            for group, (name, digest) in files.items():
                data = (self.folder / name).read_bytes()
                if _sha256(data) != digest:
                    raise DamagedJudgeError(f"{name} is not what was written")
                groups[group] = load(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedJudgeError(f"{path.name} or what it names cannot be read ({error!r})") from error
        return body["facts"], groups

    def save(self, facts: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep this, in place of what was kept.

        Args:
            facts: in JSON types.
            groups: named groups of named tensors.

        Raises:
            JudgeError: the folder cannot be written.
        """
        from safetensors.torch import save

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files = {}
            for group, tensors in groups.items():
                data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
                digest = _sha256(data)
                name = f"{group}-{digest[:16]}.safetensors"
                with whole_files.appearing(self.folder / name) as temporary:
                    temporary.write_bytes(data)
                files[group] = (name, digest)
            body = json.loads(json.dumps({"facts": facts, "files": files}, allow_nan=False))
            described = {"sha256": _sha256(_canonical(body)), "body": body}
            whole_files.write_text(self.folder / DESCRIPTION, json.dumps(described, indent=1) + "\n")
            for path in self.folder.glob("*.safetensors"):
                if path.name not in {name for name, _ in files.values()}:
                    path.unlink(missing_ok=True)
            for path in self.folder.glob(".*"):  # what a process left that was killed while it wrote
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> JudgeError:
        return JudgeError(
            f"the judge cannot be kept in {self.folder} ({error.strerror or error}); name another folder, "
            "for example in the environment variable TEXTEBM_HOME"
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Keep other processes off this judge meanwhile. Gives whether it was free at once; waits where it was not.

        Raises:
            JudgeError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("wb")
        except OSError as error:
            raise self._unwritable(error) from error
        with file:
            yield self._acquire(file.fileno())  # closing the file ends the lock, and so does the end of the process

    def is_busy(self) -> bool:
        """Whether another process holds the lock at this moment."""
        if not LOCKS:
            return False
        import fcntl

        with contextlib.suppress(OSError), (self.folder / "lock").open("rb") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _acquire(self, descriptor: int) -> bool:
        if not LOCKS:
            return True
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return False
        except OSError:  # a file system without locks
            return True


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flatten_optimiser(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, named PARAMETER.KEY; numbers become tensors."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entries in state["state"].items()
        for key, value in entries.items()
        if value is not None
    }


def unflatten_optimiser(tensors: Mapping[str, Tensor], groups: object) -> dict[str, Any]:
    """The other way round, for `load_state_dict`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": groups}
