"""The run folder: checkpoints that are written whole or not at all, and resumed exactly.

    RUN/config.json               the run's configuration (a valid --config)
    RUN/log.jsonl                 one JSON object a line: training, validation, notes
    RUN/checkpoints/step-N/       a model folder (config, weights, of text the tokeniser), run.json and
                                  optimiser.safetensors; and learner.safetensors, where the learner keeps chains, or
                                  weights that it averages
    RUN/checkpoints/step-N/chains.npy   where persistent chains stood, in a run that has them (RUN/chains.npy: now)
    RUN/checkpoints/last.json     which step-N is the newest
    RUN/checkpoints/previous.json which one was before it
    RUN/checkpoints/best.json     which step-N did best on valid

A step folder is written under another name and renamed when complete; a pointer file is replaced in one move. So a
crash at any moment leaves the previous checkpoint in place. run.json holds the SHA-256 of every file beside it, and of
itself; the checkpoint before the last one is kept, and a run whose last one was cut short or changed goes on from it.
Nothing is ever unpickled: safetensors and JSON only.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from textebm import plain_json, whole_files
from textebm.config import Config, from_dict, to_dict
from textebm.data.sources import HUB_PREFIX
from textebm.errors import CheckpointError, ConfigError, DamagedError
from textebm.model.latent_model import CONFIG, WEIGHTS, LatentModel, load_tensors, save_tensors

if TYPE_CHECKING:
    from textebm.chains import ChainMemory
    from textebm.data.registry import Split
    from textebm.model.learner import Learner

RUN, OPTIMISER, LEARNER = "run.json", "optimiser.safetensors", "learner.safetensors"
SHIPPED = Path(__file__).parent / "pretrained" / "demo"
"""The model that ships with the package."""
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""OWNER/NAME, which names a model on the Hugging Face Hub."""
FORMAT = 2
"""Of run.json. 1: no format is named, and sentences came in another order; such a run cannot be gone on with."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Learning steps made."""
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches of the current epoch that are done."""
    seconds: float = 0.0
    """Time spent training, validation included, over all sittings."""
    best_score: float | None = None
    """Best validation score so far (lower is better)."""
    best_step: int | None = None
    """Step of that score."""
    mutual_information: float | None = None
    """That of x and z at the end of the last epoch with aggressive updates of the encoder, in nats."""
    encoder_caught_up: bool = False
    """Whether such updates have ended."""


class Beside(Protocol):
    """What has files to write beside a model's weights (see `Material.save`)."""

    def save(self, folder: Path, /) -> None:
        """Write them into a folder."""
        ...


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds something else.
    """
    value = plain_json.read(path, CheckpointError)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def save(
    run_dir: Path,
    model: LatentModel,
    material: Beside,
    learner: "Learner",
    config: Config,
    progress: Progress,
    best: bool,
    contents: "dict[Split, str]",
    chains: "ChainMemory | None" = None,
) -> Path:
    """Write a checkpoint and point `last` (and `best`, if it is the best) at it; older ones that nothing points at go.

    Args:
        run_dir: the run folder.
        model: what is saved as the model: the learner's `result`.
        material: what it was trained on, which may have files to write beside it (a tokeniser's).
        learner, config, progress: what is saved beside it.
        best: whether it did best on valid so far.
        contents: digest of each split (see `Corpus.digest`), by which a resumed run knows its data.
        chains: persistent chains, in a run that has them.

    Returns:
        The checkpoint's folder.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"step-{progress.step}"
    state = {"config": to_dict(config), "progress": dataclasses.asdict(progress), "contents": contents}
    last = pointed_at(run_dir, "last")
    if last == final:  # this step again: only its progress (end of epoch, best score) is new
        whole_files.write_text(final / RUN, sealed(final, state))
    else:
        temporary = folder / f".step-{progress.step}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            model.save_pretrained(temporary)
            material.save(temporary)
            save_tensors(_optimiser_state(learner), temporary / OPTIMISER)
            if kept := learner.state():
                save_tensors({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, temporary / LEARNER)
            if chains is not None:
                chains.save(temporary)
            whole_files.write_text(temporary / RUN, sealed(temporary, state))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk the room is wanted
            raise
        shutil.rmtree(final, ignore_errors=True)  # left by a crash: nothing points at it
        temporary.rename(final)
        if last is not None:
            _point(folder, "previous", last)
    for name in ("last", "best") if best else ("last",):
        _point(folder, name, final)
    _prune(folder)
    return final


def sealed(folder: Path, state: dict[str, Any]) -> str:
    """run.json of a checkpoint whose other files are written: its state, and by which checksums it is known whole.

    Args:
        folder: where those files are; every one of them is sealed.
        state: config, progress and contents, in JSON types (see `save`).
    """
    files = {path.name: whole_files.sha256(path) for path in sorted(folder.iterdir()) if _is_sealed(path)}
    described = {"format": FORMAT, **state, "files": files}
    return json.dumps({**described, "sha256": _digest(described)}, indent=2) + "\n"


def _is_sealed(path: Path) -> bool:
    return path.is_file() and path.name != RUN and not path.name.startswith(".")


def _digest(described: dict[str, Any]) -> str:
    """Of a JSON object, however it is laid out."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def model_digest(folder: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a model's description and weights: by which caches know a model.

    Not by the time of its files: copies, and a clock that is set, may give two models one time.
    """
    sums = " ".join(whole_files.sha256(folder / file) for file in (CONFIG, WEIGHTS))
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def verify(folder: Path, only: tuple[str, ...] = ()) -> None:
    """Check that a checkpoint is as it was written; those of earlier versions, which hold no checksums, pass.

    Args:
        folder: the checkpoint.
        only: files beside run.json to which it is limited; none for all.

    Raises:
        DamagedError: a file is missing, cut short or changed; the message names it.
        CheckpointError: it is of a later version.
    """
    try:
        described = read_json(folder / RUN)
    except CheckpointError as error:
        raise DamagedError(str(error)) from None
    _check_format(folder, described)  # how a later version seals its checkpoints is not for us to say
    if "files" not in described and "sha256" not in described:
        return
    seal = described.pop("sha256", None)
    if seal != _digest(described) or not isinstance(described.get("files"), dict):
        raise DamagedError(f"{folder / RUN} is not as it was written")
    for name, digest in described["files"].items():
        if only and name not in only:
            continue
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing")
        if whole_files.sha256(path) != digest:
            raise DamagedError(f"{path} is not as it was written")


def newest_whole(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, `last` first; and what is wrong with newer ones.

    Args:
        run_dir: the run folder.

    Returns:
        The checkpoint's folder, None in a folder without checkpoints; and why `last` is not it, where it is not.

    Raises:
        DamagedError: there are checkpoints, and every one is damaged.
        CheckpointError: one is of a later version.
    """
    damage = []
    try:
        last = pointed_at(run_dir, "last")
    except CheckpointError as error:
        last, damage = None, [str(error)]
    for folder in dict.fromkeys([*([last] if last else []), *_by_step(run_dir / "checkpoints")]):
        try:
            verify(folder)
        except DamagedError as error:
            damage.append(str(error))
        else:
            return folder, damage
    if damage:
        raise DamagedError(
            f"no checkpoint of {run_dir} is whole: {'; '.join(damage)}. Bring a copy of it back, or train anew: "
            f"textebm train --config {run_dir / 'config.json'}"
        )
    return None, []


def holds_run(run_dir: Path) -> bool:
    """Whether there is a checkpoint in a run folder, whole or damaged."""
    return bool(_by_step(run_dir / "checkpoints"))


def verify_model(folder: Path) -> None:
    """Check that the model in a checkpoint is as it was written; a model folder that is no checkpoint passes.

    Raises:
        DamagedError: it is not.
    """
    if (folder / RUN).exists():
        try:
            verify(folder, (CONFIG, WEIGHTS, "tokenizer.json"))
        except DamagedError as error:
            others = [str(path) for path in _by_step(folder.parent) if path != folder]
            hint = f"; --model {others[0]} names another checkpoint of the run" if others else ""
            raise DamagedError(f"{error}{hint}") from None


def load_model(folder: Path, device: torch.device | str = "cpu") -> LatentModel:
    """The model in a checkpoint or a model folder, in evaluation mode.

    Raises:
        DamagedError: it is not as it was written.
        CheckpointError: there is no readable model.
    """
    verify_model(folder)
    return LatentModel.from_pretrained(folder, device).eval()


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    steps = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    whole = [path for path, number in steps.items() if number.isdecimal()]
    return sorted(whole, key=lambda path: int(steps[path]), reverse=True)


def go_back_to(folder: Path) -> None:
    """Make a checkpoint the last one of its run, and drop newer ones, which are damaged.

    The best one stays if it is whole; else it is the one that was best when the checkpoint was written.
    """
    checkpoints = folder.parent
    for path in [path for path in _by_step(checkpoints) if path != folder]:
        try:
            verify(path)
        except DamagedError:
            shutil.rmtree(path)
    _point(checkpoints, "last", folder)
    best = checkpoints / f"step-{read_run(folder)[1].best_step}"
    for name, target in (("best", best if best.is_dir() else None), ("previous", None)):
        try:
            found = pointed_at(checkpoints.parent, name)
        except CheckpointError:
            found = None
        if found is None:
            (checkpoints / f"{name}.json").unlink(missing_ok=True)
            if target is not None:
                _point(checkpoints, name, target)


def _prune(folder: Path) -> None:
    named = ("last", "previous", "best")
    kept = {p.name for name in named if (p := pointed_at(folder.parent, name)) is not None}
    for path in [*folder.glob("step-*"), *folder.glob(".step-*.tmp")]:  # the latter were left by crashes
        if path.name not in kept:
            shutil.rmtree(path)


def _point(checkpoints: Path, name: str, target: Path) -> None:
    """Let `last`, `previous` or `best` point at a checkpoint, in one move (`pointed_at` reads it)."""
    whole_files.write_text(checkpoints / f"{name}.json", json.dumps({"folder": target.name}) + "\n")


def pointed_at(run_dir: Path, name: str) -> Path | None:
    """The checkpoint that `last` or `best` points at, or None where there is none."""
    pointer = run_dir / "checkpoints" / f"{name}.json"
    if not pointer.exists():
        return None
    named = read_json(pointer).get("folder")
    if not isinstance(named, str) or not re.fullmatch(r"step-[0-9]{1,18}", named):  # nothing outside the run
        raise CheckpointError(f"{pointer} names no checkpoint")
    folder = pointer.parent / named
    if not folder.is_dir():
        raise CheckpointError(f"{pointer} points at {folder.name}, which is not there")
    return folder


def _optimiser_state(learner: "Learner") -> dict[str, torch.Tensor]:
    state = {}
    for part, optimiser in learner.optimisers().items():
        for index, values in optimiser.state_dict()["state"].items():
            for key, value in values.items():
                state[f"{part}.{index}.{key}"] = torch.as_tensor(value).cpu()
    return state


def restore_optimisers(folder: Path, learner: "Learner") -> None:
    """Give a learner the optimiser state that a checkpoint holds.

    Raises:
        CheckpointError: the state is missing, broken, or of another model.
    """
    tensors = load_tensors(folder / OPTIMISER)
    for part, optimiser in learner.optimisers().items():
        described = optimiser.state_dict()
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            owner, _, rest = name.partition(".")
            index, _, key = rest.partition(".")
            if not (key and re.fullmatch("[0-9]{1,9}", index)):
                raise CheckpointError(f"{folder / OPTIMISER} holds no optimiser state, but a tensor {name!r}")
            if owner == part:
                state.setdefault(int(index), {})[key] = tensor
        parameters = optimiser.param_groups[0]["params"]
        if len(state) not in (0, len(parameters)):
            raise CheckpointError(
                f"{folder / OPTIMISER} holds {len(state)} {part} states where {len(parameters)} are needed"
            )
        try:
            for number, values in state.items():
                _require_moments(values, parameters[number].shape)
            optimiser.load_state_dict({"state": state, "param_groups": described["param_groups"]})
        except (LookupError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder / OPTIMISER} holds {part} states of another model: {error}") from None


def _require_moments(values: dict[str, torch.Tensor], shape: torch.Size) -> None:
    """Check that Adam's state of a parameter is of its shape.

    Raises:
        ValueError: it is not.
    """
    for name, tensor in values.items():
        if tensor.shape != shape and not (name == "step" and tensor.numel() == 1):
            raise ValueError(f"{name} of shape {tuple(tensor.shape)}, where the parameter has {tuple(shape)}")
    if missing := {"exp_avg", "exp_avg_sq"} - values.keys():
        raise ValueError(f"no {min(missing)}")


def restore_learner(folder: Path, learner: "Learner") -> None:
    """Give a learner, made with a checkpoint's model, its optimiser state and whatever else it keeps.

    Raises:
        CheckpointError: the state is missing, broken, or of another model.
    """
    restore_optimisers(folder, learner)
    kept = load_tensors(folder / LEARNER) if learner.state() else {}
    try:
        learner.restore(kept)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / LEARNER}: {error}") from None


def read_run(folder: Path) -> tuple[Config, Progress]:
    """The run configuration and progress that a checkpoint was written with.

    Raises:
        CheckpointError: run.json is missing, broken, or of a later version.
    """
    described = read_json(folder / RUN)
    _check_format(folder, described)
    try:
        return from_dict(described["config"]), from_dict(described["progress"], Progress)
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{folder / RUN}: {error}") from None


def read_contents(folder: Path) -> dict[str, str]:
    """The digest of the text of each split that a run was trained on.

    Raises:
        CheckpointError: run.json is missing or broken, or of an earlier version, with which training cannot go on.
    """
    described = read_json(folder / RUN)
    if _check_format(folder, described) < FORMAT:
        raise CheckpointError(
            f"{folder} was written by an earlier version of textebm, in which sentences came in another order: its "
            "model can be sampled and measured, but training cannot go on from it. Train anew: textebm train --config "
            f"{folder.parent.parent / 'config.json'}"
        )
    contents = described.get("contents")
    if not isinstance(contents, dict):
        raise CheckpointError(f"{folder / RUN}: 'contents', the digests of the text, are missing")
    return contents


def _check_format(folder: Path, described: dict[str, Any]) -> int:
    """The format that run.json names; an error if it is a later one than ours, or none."""
    written = described.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise CheckpointError(
            f"{folder / RUN} has format {written!r}; this version of textebm reads formats up to {FORMAT}: upgrade "
            "textebm"
        )
    return written


def truncate_log(path: Path, step: int) -> None:
    """Drop what was logged after `step`: a resumed run writes those lines again."""
    if not path.exists():
        return
    kept = []
    with path.open("rb") as log:
        for raw in log:
            try:
                line = raw.decode().rstrip("\n")
                if plain_json.parse(line).get("step", 0) <= step:
                    kept.append(line)
            except (ValueError, AttributeError, TypeError):  # the line a crash cut short, or a disk has damaged
                continue
    whole_files.write_text(path, "".join(line + "\n" for line in kept))


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run folder that was saved to last.

    Raises:
        CheckpointError: there is none.
    """
    pointers = [*runs.glob("*/checkpoints/last.json")]
    if not pointers:
        raise CheckpointError(f"there is no run in {runs}: name one, or train one with textebm train")
    return max(pointers, key=lambda p: p.stat().st_mtime).parent.parent


def find_model(name: str | None, runs: Path = Path("runs")) -> tuple[Path, str]:
    """The model folder that a user means.

    Args:
        name: a run folder (its best checkpoint is meant), a model folder, `hf:OWNER/NAME` for one on the Hugging Face
            Hub, or None for the newest run; where there is no run, the demo model that ships with the package, which
            `demo` names too, where no such folder is there.
        runs: where runs are.

    Returns:
        The model folder, and a sentence that says which it is.

    Raises:
        CheckpointError: there is no model where `name` says.
    """
    if name is None:
        try:
            run = newest_run(runs)
        except CheckpointError:
            return SHIPPED, f"the demo model that ships with textebm (no run in {runs}; --model names another)"
        return find_model(str(run))[0], f"the newest run, {run}"
    if name.startswith(HUB_PREFIX):
        from textebm.sharing import fetch

        return fetch(name), name
    path = Path(name)
    if name == SHIPPED.name and not path.exists():
        return SHIPPED, "the demo model that ships with textebm"
    if not path.exists():
        hub = f"; {HUB_PREFIX}{name} names a model on the Hugging Face Hub" if HUB_NAME.fullmatch(name) else ""
        raise CheckpointError(f"no run and no model folder {name!r}{hub}")
    if path.is_file():
        hint = f"; it is the folder that is meant: {path.parent}" if path.suffix == ".safetensors" else ""
        raise CheckpointError(
            f"{name!r} is a file; a run folder or a model folder is wanted{hint} (text goes to --data or --samples)"
        )
    if not (path / "checkpoints").is_dir() and not (path / "config.json").exists() and _holds_text(path):
        raise CheckpointError(
            f"{name!r} is no model folder: it holds text, and no config.json. --data {path} names it as a corpus"
        )
    return pointed_at(path, "best") or pointed_at(path, "last") or path, str(path)


def _holds_text(folder: Path) -> bool:
    return any(path for ending in (".txt", ".jsonl") for path in folder.glob(f"*{ending}*"))
