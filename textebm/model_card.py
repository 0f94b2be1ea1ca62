"""The card of a shared model: what it is, what it learned from, how it scored, how to load it, what it cannot do.

A card is README.md of the model's folder, in the form that the Hugging Face Hub reads: metadata as YAML, then prose. It
has the figures that were measured and no others; each score stands with the signature that says how it was computed.
"""

import dataclasses
import html
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import checkpoint, whole_files
from textebm._version import __version__
from textebm.config import Config, to_dict
from textebm.data.sources import HUB_PREFIX
from textebm.errors import DataError, UsageError
from textebm.plain_json import is_finite
from textebm.report import OF_SCORES, OF_VALID, describe_data, describe_model, scores_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from textebm.model.latent_model import LatentModel

CARD, PICTURE = "README.md", "samples.png"
IMAGES = 36
"""On the picture of a model of images."""
TAGS = ("textebm", "latent-variable-model", "langevin-dynamics")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclasses.dataclass(frozen=True)
class CardOptions:
    """What a card says besides what is known of the model anyway."""

    license: str | None = None
    """The Hub's identifier of the licence that the weights are given under, such as mit or cc-by-sa-4.0."""
    language: tuple[str, ...] = ()
    """Codes of the languages of a model of text, such as en."""
    results: tuple[Path, ...] = ()
    """JSON files with scores of this model, besides those in the run folder."""
    samples: int = 5
    """Sentences that are quoted, nothing chosen or left out."""
    seed: int = 0
    """Of those sentences, or of the images."""

    def __post_init__(self) -> None:
        if self.license is not None and not LICENSE.fullmatch(self.license):
            raise UsageError(
                f"license is {self.license!r}: it must be an identifier as the Hub has them, such as mit, apache-2.0, "
                "cc-by-sa-4.0 or other"
            )
        for code in self.language:
            if not re.fullmatch("[a-z]{2,3}", code):
                raise UsageError(f"language is {code!r}: it must be a code of two or three letters, such as en")
        for name in ("samples", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model comes from: what is still known of its run."""

    config: Config | None = None
    """Settings of the run, without the places of its files."""
    progress: checkpoint.Progress = dataclasses.field(default_factory=checkpoint.Progress)
    """How far it had come."""
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Digest of each split."""
    start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The first line of its log."""
    valid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The line of its log with the validation of this checkpoint."""
    run_dir: Path | None = None
    """Its folder."""

    @classmethod
    def of(cls, folder: Path) -> "Origin":
        """What is known of a model folder.

        Raises:
            CheckpointError: its run.json or the log of its run is damaged.
        """
        from textebm.plots import read_log

        if not (folder / checkpoint.RUN).exists():
            return cls()
        config, progress = checkpoint.read_run(folder)
        contents = checkpoint.read_json(folder / checkpoint.RUN).get("contents") or {}
        run_dir = folder.parent.parent if folder.parent.name == "checkpoints" else None
        log = read_log(run_dir) if run_dir is not None and (run_dir / "log.jsonl").exists() else []
        start = next((line for line in log if line["kind"] == "start"), {})
        at_step = [line for line in log if line["kind"] == "valid" and line["step"] == progress.step]
        valid = at_step[-1] if at_step else {}
        return cls(without_places(config), progress, contents, start, valid, run_dir)


def without_places(config: Config) -> Config:
    """A run's settings without the places of files on the machine that it ran on: of a path the last part stays."""
    data = config.data.removeprefix(HUB_PREFIX)
    local = not config.data.startswith(HUB_PREFIX) or _is_local(config.data)
    return dataclasses.replace(config, data=Path(data).resolve().name if local else config.data, data_dir=None)


def _is_local(data: str) -> bool:
    """Whether `hf:NAME` means a file or folder here; one that is gone has the form of a path."""
    from textebm.data.hub import Reference

    try:
        return Reference.parse(data).path is not None
    except DataError:
        return True


def write(
    model: "LatentModel",
    tokenizer: "Tokenizer | None",
    origin: Origin,
    target: Path,
    name: str,
    options: CardOptions | None = None,
) -> None:
    """Write a model's card into a folder; of a model of images also a picture, where Pillow is installed.

    Args:
        model: the model.
        tokenizer: of a model of text.
        origin: what is known of its run.
        target: the folder.
        name: by which the model is loaded: OWNER/NAME on the Hub, or a folder.
        options: what else the card says.

    Raises:
        DataError: a file of results is no JSON.
    """
    options = options or CardOptions()
    scores = [score for score in scores_of(origin.run_dir, options.results) if is_finite(score["score"])]
    drawn = _sentences(model, tokenizer, options) if tokenizer is not None else []
    pictured = tokenizer is None and _draw(model, target / PICTURE, options.seed)
    whole_files.write_text(target / CARD, _render(model, origin, name, options, scores, drawn, pictured) + "\n")


def _render(
    model: "LatentModel",
    origin: Origin,
    name: str,
    options: CardOptions,
    scores: Sequence[Mapping[str, Any]],
    drawn: Sequence[str],
    pictured: bool,
) -> str:
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("textebm"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": as_cell, "block": as_block, "word": shlex.quote}
    config, described = model.config, metadata(model, origin, name, options, scores)
    return environment.get_template("model_card.md").render(
        metadata=yaml.safe_dump(described, sort_keys=False, allow_unicode=True).strip(),
        title=name.rpartition("/")[2],
        name=name,
        on_hub=checkpoint.HUB_NAME.fullmatch(name) is not None,
        of_images=config.image is not None,
        has_latent=config.prior.dimensions > 0,
        prior=config.prior,
        vocabulary=config.vocab_size,
        longest=config.longest,
        license=options.license,
        facts=[(key, value) for key, value in _facts(model, origin) if value],
        corpus=_about_corpus(origin),
        settings=None if origin.config is None else json.dumps(to_dict(origin.config), indent=2, ensure_ascii=False),
        valid=[(of, f"{origin.valid[key]:.4g}") for key, of in OF_VALID.items() if is_finite(origin.valid.get(key))],
        step=origin.progress.step,
        scores=[_score_in_words(score) for score in scores],
        samples=drawn,
        pictured=pictured,
        seed=options.seed,
        version=__version__,
    )


def metadata(
    model: "LatentModel", origin: Origin, name: str, options: CardOptions, scores: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the Hub reads of a card, in JSON types: its model card metadata, with scores as `model-index`."""
    of_images, ebm = model.config.image is not None, model.config.prior.kind == "ebm"
    pipeline = "unconditional-image-generation" if of_images else "text-generation"
    data = None if origin.config is None else origin.config.data
    on_hub = data is not None and data.startswith(HUB_PREFIX)
    described: dict[str, Any] = {
        "license": options.license,
        "language": list(options.language),
        "library_name": "textebm",
        "pipeline_tag": pipeline,
        "tags": [*TAGS, *(["energy-based-model"] if ebm else [])],
        "datasets": [re.split("[@:]", data.removeprefix(HUB_PREFIX))[0]] if data is not None and on_hub else [],
        "metrics": sorted({str(score["metric"]) for score in scores}),
    }
    if scores and data is not None:
        corpus = data.removeprefix(HUB_PREFIX)
        results = {
            "task": {"type": pipeline},
            "dataset": {"type": corpus, "name": corpus},
            "metrics": [_indexed(score) for score in scores],
        }
        described["model-index"] = [{"name": name.rpartition("/")[2], "results": [results]}]
    return {key: value for key, value in described.items() if value}


def _indexed(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score as the model index has it; how it was computed goes with it."""
    named = OF_SCORES.get(score["metric"], score["metric"])
    arguments = {"signature": str(score["signature"]), "interval": score.get("interval")}
    given = {key: value for key, value in arguments.items() if value is not None}
    return {"type": str(score["metric"]), "value": float(score["score"]), "name": named, "args": given}


def _score_in_words(score: Mapping[str, Any]) -> dict[str, Any]:
    interval, details = score.get("interval"), score.get("details") or {}
    between = "" if interval is None else f" (95 % interval {interval[0]:.4g} to {interval[1]:.4g})"
    remarks = [*(details.get("headline_reasons") or ()), *(details.get("warnings") or ())]
    real = (details.get("real_row") or {}).get("perplexity")
    return {
        "name": OF_SCORES.get(score["metric"], score["metric"]),
        "figure": f"{score['score']:.4g}{between}",
        "real": None if real is None else f"{real:.4g}",
        "signature": str(score["signature"]),
        "remarks": list(dict.fromkeys(map(str, remarks))),
    }


def _facts(model: "LatentModel", origin: Origin) -> Iterator[tuple[str, str]]:
    if origin.config is not None:
        yield from describe_data(origin.config, origin.start.get("data", {}))
    yield from describe_model(model)
    if origin.config is not None:
        yield "trained", f"{origin.progress.step:,} steps, {origin.progress.seconds / 60:.1f} minutes"
        yield "batch size, seed", f"{origin.config.batch_size}, {origin.config.seed}"
    yield "commit", str(origin.start.get("commit") or "")
    yield "hardware, precision", ", ".join(str(origin.start[k]) for k in ("hardware", "precision") if k in origin.start)


def _about_corpus(origin: Origin) -> str | None:
    """What is known of a named corpus, its licence above all."""
    from textebm.data import image_cards, registry

    name = None if origin.config is None else origin.config.data
    if name in registry.card_names():
        card = registry.load_card(name)
        return f"{card.title}. {card.licence}"
    if name in image_cards.image_card_names():
        image_card = image_cards.load_image_card(name)
        return f"{image_card.title}. {image_card.licence}"
    return None


def _sentences(model: "LatentModel", tokenizer: "Tokenizer", options: CardOptions) -> list[str]:
    from textebm import generation

    return [sample.text for sample in generation.generate(model, tokenizer, options.samples, options.seed)]


def _draw(model: "LatentModel", path: Path, seed: int) -> bool:
    """Draw images of a model, where Pillow is installed; whether that was done."""
    import torch

    from textebm import image_generation, png

    try:
        png.require_pillow()
    except UsageError:
        return False
    drawn = [part.images for part in image_generation.generate(model, IMAGES, seed)]
    png.write_grid(path, torch.cat(drawn))
    return True


def as_cell(text: str) -> str:
    """Text that may stand in a table of Markdown, whatever it says."""
    return re.sub(r"([|\\`*_\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def as_block(text: str) -> str:
    """Text as a block of code of Markdown, whatever it says."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
