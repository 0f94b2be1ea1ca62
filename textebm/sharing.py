"""Sharing a trained model: a folder that holds all it needs, with a card that describes it; and the Hugging Face Hub.

    textebm share runs/ptb --output ptb-lebm
    textebm share runs/ptb --push owner/ptb-lebm
    textebm generate --model hf:owner/ptb-lebm

A shared folder holds `config.json`, `model.safetensors`, of text the tokeniser's files, `run.json` (how it was trained,
and a checksum of each of these) and `README.md`, the card. Only safetensors and JSON are read from one, wherever it
comes from. Writing and reading a folder needs no network and no huggingface_hub; `push` and `fetch` need both.
"""

import dataclasses
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from textebm import checkpoint, model_card, whole_files
from textebm._version import __version__
from textebm.config import to_dict
from textebm.data.sources import HUB_PREFIX
from textebm.errors import CheckpointError, UsageError
from textebm.model.latent_model import CONFIG, WEIGHTS, LatentModel
from textebm.model_card import CardOptions, Origin

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = (
    CONFIG,
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    checkpoint.RUN,
    model_card.CARD,
    model_card.PICTURE,
)
"""All that a shared folder holds, and all that is ever sent to the Hub or taken from it."""
REFERENCE = re.compile(rf"({checkpoint.HUB_NAME.pattern})(?:@([\w./-]+))?")
"""OWNER/NAME or OWNER/NAME@REVISION."""
COMMIT_MESSAGE = "Share a model of textebm"


def export(
    model: LatentModel,
    tokenizer: "Tokenizer | None",
    source: Path,
    target: Path,
    name: str | None = None,
    options: CardOptions | None = None,
) -> Path:
    """Write a model into a folder of its own, with all that is needed to use it, and its card.

    The files are written beside it first and then moved in one by one, run.json, which holds their checksums, at the
    end. Other files of the folder stay.

    Args:
        model: the model; its weights are stored as they are, so that a seed gives the same samples.
        tokenizer: of a model of text.
        source: the folder that it was loaded from: what is known of its run is found there.
        target: the folder, made if need be.
        name: by which the card says it is loaded (default: the folder's name).
        options: what else the card says. Without them, the card of a folder that was shared is taken over.

    Returns:
        The folder.

    Raises:
        UsageError: `target` is, or lies in, a run folder; or it cannot be written.
        CheckpointError: what is known of the run is damaged.
        DataError: a file of results is no JSON.
    """
    target = target.resolve()
    if any(checkpoint.holds_run(folder) for folder in (target, *target.parents[:2])):
        raise UsageError(f"{target} is, or lies in, a run folder: name another folder to share the model in")
    origin = Origin.of(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            made = Path(place)
            _write_model(model, tokenizer, origin, made)
            if options is None and origin.run_dir is None and _has_card(source):
                for file in (model_card.CARD, model_card.PICTURE):
                    if (source / file).exists():
                        shutil.copyfile(source / file, made / file)
            else:
                model_card.write(model, tokenizer, origin, made, name or target.name, options)
            target.mkdir(exist_ok=True)
            for file in sorted(FILES, key=lambda each: each == checkpoint.RUN):
                if (made / file).exists():
                    (made / file).replace(target / file)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from None
    return target


def _write_model(model: LatentModel, tokenizer: "Tokenizer | None", origin: Origin, folder: Path) -> None:
    from textebm.data.vocabulary import save_tokenizer

    model.save_pretrained(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    if origin.config is not None:
        state = {
            "config": to_dict(origin.config),
            "progress": dataclasses.asdict(origin.progress),
            "contents": dict(origin.contents),
        }
        whole_files.write_text(folder / checkpoint.RUN, checkpoint.sealed(folder, state))


def _has_card(folder: Path) -> bool:
    card = folder / model_card.CARD
    return card.is_file() and card.read_text(encoding="utf-8").startswith("---\n")


def is_on_hub(name: str | Path | None) -> bool:
    """Whether a name means a model on the Hub: `hf:NAME`, or OWNER/NAME where there is no folder OWNER here.

    Where there is one, `runs` say, the name is that of a run which is not there.
    """
    if not isinstance(name, str):
        return False
    return name.startswith(HUB_PREFIX) or (REFERENCE.fullmatch(name) is not None and not Path(name).parent.exists())


def require_repository(name: str) -> None:
    """Check that a name may be one on the Hub.

    Raises:
        UsageError: it is not OWNER/NAME.
    """
    if not checkpoint.HUB_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name on the Hugging Face Hub: it must be OWNER/NAME")


def push(
    folder: Path,
    name: str,
    *,
    commit_message: str = COMMIT_MESSAGE,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Upload a shared folder to the Hugging Face Hub, in one commit.

    Args:
        folder: what `export` wrote; of it only the files of `FILES` go.
        name: OWNER/NAME, made if need be.
        commit_message: of the commit.
        private: whether a new repository is private (default: as its owner's settings say).
        token: that may write there (default: that of `hf auth login`).
        branch: which one (default: main).
        create_pr: propose the commit instead of making it.

    Returns:
        The commit's address.

    Raises:
        UsageError: the name is none, or huggingface_hub is not installed.
        CheckpointError: the Hub cannot be reached, or refuses.
    """
    require_repository(name)
    require_huggingface_hub("pushing a model")
    from huggingface_hub import HfApi

    from textebm.data.hub import hub_unreachable

    if why := hub_unreachable():
        raise CheckpointError(f"{name} cannot be pushed: {why}")
    api = HfApi(token=token, library_name="textebm", library_version=__version__)
    try:
        repository = api.create_repo(repo_id=name, private=private, exist_ok=True).repo_id
        done = api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            allow_patterns=list(FILES),
        )
    except Exception as error:  # of the Hub, of the network, of whichever HTTP library
        raise CheckpointError(
            f"{name} cannot be pushed: {_said(error)} (hf auth login stores a token that may write there)"
        ) from error
    return str(done.commit_url)


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model on the Hugging Face Hub, downloaded into the Hub's cache (HF_HOME) if it is not there.

    Args:
        name: OWNER/NAME, OWNER/NAME@REVISION, or the same behind `hf:`.
        revision: a branch, tag or commit, in place of that in the name (default: main).
        token: that may read it (default: that of `hf auth login`).
        cache_dir: in place of the Hub's cache.
        force_download: download what is in the cache again.
        local_files_only: take what is in the cache.

    Raises:
        CheckpointError: there is no such model, it cannot be had, or it is not one of textebm.
        UsageError: the name is none, or huggingface_hub is not installed.
    """
    found = REFERENCE.fullmatch(name.removeprefix(HUB_PREFIX))
    if found is None:
        raise UsageError(f"{name!r} is no model on the Hugging Face Hub: give {HUB_PREFIX}OWNER/NAME[@REVISION]")
    require_huggingface_hub(f"{found[0]} on the Hugging Face Hub")
    from huggingface_hub import snapshot_download

    from textebm.data.hub import hub_unreachable

    unreachable = None if local_files_only else hub_unreachable()
    try:
        folder = snapshot_download(
            found[1],
            revision=revision or found[2],
            allow_patterns=list(FILES),
            token=token,
            cache_dir=cache_dir,
            force_download=force_download and unreachable is None,
            local_files_only=local_files_only or unreachable is not None,
            library_name="textebm",
            library_version=__version__,
        )
    except Exception as error:  # of the Hub, of the network, of whichever HTTP library
        why = f"it is not in the cache, and the hub cannot be asked ({unreachable})" if unreachable else _said(error)
        raise CheckpointError(f"{found[0]} on the Hugging Face Hub cannot be loaded: {why}") from error
    return Path(folder)


def _said(error: Exception) -> str:
    """What an error of a library says, in one line of some length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 300 else f"{said[:300]} ..."


def require_huggingface_hub(what: str) -> None:
    """Check that the library is installed.

    Raises:
        UsageError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("huggingface_hub") is None:
        raise UsageError(f"{what} needs the library huggingface_hub: pip install 'textebm[hub]'")
