"""`textebm map`, `neighbours` and `arithmetic`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from textebm import options
from textebm.commands.terminal import (
    beside_text,
    choose_device,
    find_images,
    find_text,
    model_folder,
    parse,
    progress_bar,
    read_lines,
    refuse,
    say,
    write,
    writing,
)
from textebm.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from textebm.data.dataset import Dataset
    from textebm.latent_space import LatentMap, Posterior
    from textebm.model.latent_model import LatentModel

MAP = "map.png"
"""Where a map is drawn when no file is named."""
SIGNS = {"+": 1, "-": -1}


def map(arguments: Sequence[str]) -> int:
    """`textebm map`."""
    chosen = parse(options.Map, "map", arguments)
    from textebm import latent_plots, latent_space, plots

    plot = chosen.plot
    if plot is None and chosen.landscape is None and chosen.csv is None and chosen.format == "text":
        plot = MAP
    if plot is not None or chosen.landscape is not None:
        plots.require_matplotlib()  # before anything is computed
    looked_at = _looked_at(chosen, model_folder(chosen))
    colour = _colour(chosen.colour, looked_at)
    found = _posterior(chosen, looked_at)
    drawn = latent_space.latent_map(looked_at.data, found, looked_at.names, looked_at.n, chosen.method, chosen.seed)
    land = None
    if chosen.landscape is not None or chosen.format == "json":
        land = latent_space.landscape(looked_at.model, found, chosen.seed, chosen.prior_samples)
    if plot is not None:
        latent_plots.latent_map(drawn, colour, Path(plot))
    if chosen.landscape is not None and land is not None:
        latent_plots.landscape(land, Path(chosen.landscape))
    if chosen.csv is not None:
        with writing(chosen.csv, "--csv"):
            drawn.write_csv(Path(chosen.csv))
    for name, file in (("map", plot), ("landscape", chosen.landscape), ("points", chosen.csv)):
        if file is not None:
            say(f"{name}: {file}")
    described: dict[str, Any] = drawn.as_dict() | {"landscape": None if land is None else land.as_dict()}
    as_json = chosen.format == "json"
    write(json.dumps(described, ensure_ascii=False) if as_json else _describe(drawn, chosen.chains), chosen.output)
    return 0


def neighbours(arguments: Sequence[str]) -> int:
    """`textebm neighbours`."""
    chosen = parse(options.Neighbours, "neighbours", arguments)
    from textebm import latent_space

    if chosen.sentence is None:
        raise UsageError("neighbours wants a sentence, in quotation marks")
    looked_at = _looked_at(chosen, model_folder(chosen))
    if looked_at.tokenizer is None:
        raise UsageError("this is a model of images, and neighbours are found of sentences: name another with --model")
    latent_space.typed(looked_at.tokenizer, [chosen.sentence])  # before the corpus is worked on
    found = _posterior(chosen, looked_at)
    near = latent_space.neighbours(
        looked_at.model,
        looked_at.tokenizer,
        chosen.sentence,
        looked_at.names,
        found,
        chosen.count,
        chosen.seed,
        chosen.steps,
    )
    if chosen.format == "json":
        described = {"sentence": chosen.sentence, "neighbours": [neighbour._asdict() for neighbour in near]}
        write(json.dumps(described, ensure_ascii=False, indent=2), chosen.output)
        return 0
    rows = [[f"{neighbour.distance:.3f}", f"{neighbour.energy:.3f}", neighbour.text] for neighbour in near]
    write(beside_text(("distance", "energy", "sentence"), rows), chosen.output)
    return 0


def arithmetic(arguments: Sequence[str]) -> int:
    """`textebm arithmetic`."""
    chosen = parse(options.Arithmetic, "arithmetic", arguments)
    terms = parse_terms(chosen.terms)
    from textebm import generation, latent_space
    from textebm.commands.sentences import chosen_decoding

    model, tokenizer = generation.load(model_folder(chosen), choose_device(chosen.device))
    decoding = chosen_decoding(chosen, model.config.longest)
    found = latent_space.arithmetic(model, tokenizer, terms, chosen.seed, decoding, chosen.chains, chosen.steps)
    if chosen.format == "json":
        described = found._asdict() | {"terms": [term._asdict() for term in found.terms]}
        write(json.dumps(described, ensure_ascii=False, indent=2), chosen.output)
        return 0
    for term in found.terms:
        say(f"{'+' if term.sign > 0 else '-'} {term.text}  (alone: {term.reconstruction})")
    write(found.text, chosen.output)
    return 0


def parse_terms(words: Sequence[str]) -> list[tuple[int, str]]:
    """Sign and sentence of each term of "A" - "B" + "C".

    Raises:
        UsageError: sentences and signs do not alternate.
    """
    wrong = 'arithmetic wants sentences in quotation marks with + or - between them: "A" - "B" + "C"'
    if not words:
        raise UsageError(f"{wrong}; nothing was given")
    signs, sentences = words[1::2], words[0::2]
    for sign in signs:
        if sign not in SIGNS:
            raise UsageError(f"{wrong}; where {sign!r} stands, a sign is wanted")
    if len(signs) == len(sentences):
        raise UsageError(f"{wrong}; the last sentence is missing")
    return [(SIGNS[sign], sentence) for sign, sentence in zip(("+", *signs), sentences, strict=True)]


# ---- what is looked at


class _LookedAt(NamedTuple):
    """A model, and samples of x in its latent space.

    n: how many of the data are taken (0: all). names: of those. key: what tells them from others.
    """

    folder: Path
    model: "LatentModel"
    tokenizer: "Tokenizer | None"
    data: "Dataset"
    n: int
    names: list[str]
    key: str


def _looked_at(chosen: options.LatentOptions, folder: Path) -> _LookedAt:
    """What the options name."""
    from textebm import generation
    from textebm.model.latent_model import read_model_config

    file = chosen.file if isinstance(chosen, options.Map) else None
    if read_model_config(folder).generator.kind == "convolutional":
        return _images(chosen, folder, file)
    from textebm import latent_space, marginal

    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    generation.require_latent(model)
    if file is not None:
        _refuse_split(chosen)
        names = read_lines(file)
        return _LookedAt(folder, model, tokenizer, latent_space.typed(tokenizer, names), 0, names, "")
    _, text = find_text(folder, tokenizer, chosen.split, chosen.data, chosen.data_dir, chosen.text_field)
    names = latent_space.texts_of(tokenizer, text, chosen.n)
    return _LookedAt(folder, model, tokenizer, text, chosen.n, names, marginal.text_digest(text, chosen.n))


def _refuse_split(chosen: options.LatentOptions) -> None:
    """Refuse what says which samples of a split are looked at, where a file names them."""
    refuse(chosen, "is of a split, and a file is named", "data", "data_dir", "text_field", "split", "n")


def _images(chosen: options.LatentOptions, folder: Path, file: str | None) -> _LookedAt:
    """Named images, or those of a split."""
    from textebm import image_generation
    from textebm.commands.images import named_pictures
    from textebm.evaluation import spread

    model = image_generation.load(folder, choose_device(chosen.device))
    refuse(chosen, "is of sentences, and the model makes images", "text_field")
    if file is not None:
        _refuse_split(chosen)
        pictures = named_pictures(model, folder, file)
        return _LookedAt(folder, model, None, pictures, 0, pictures.names, "")
    data = find_images(folder, chosen.data, chosen.data_dir).encoded(chosen.split)
    names = [f"{chosen.split}:{row}" for row in spread(len(data), chosen.n).tolist()]
    return _LookedAt(folder, model, None, data, chosen.n, names, "")


def _posterior(chosen: options.LatentOptions, looked_at: _LookedAt) -> "Posterior":
    """Its latents; those of a corpus of text are kept."""
    from textebm import checkpoint, latent_space
    from textebm.home import home

    def make() -> "Posterior":
        with progress_bar(len(looked_at.names), "image" if looked_at.tokenizer is None else "sentence") as bar:
            return latent_space.posterior(
                looked_at.model,
                looked_at.data,
                chosen.seed,
                looked_at.n,
                chosen.chains,
                chosen.steps,
                bar.update,
            )

    if not looked_at.key:
        return make()
    of_model = (looked_at.folder.name, checkpoint.model_digest(looked_at.folder))
    key = (*of_model, looked_at.key, chosen.seed, chosen.chains, chosen.steps, looked_at.model.device.type)
    return latent_space.kept_posterior(home() / "latents", key, make)


def _colour(asked: str | None, looked_at: _LookedAt) -> str:
    """By what points are coloured.

    Raises:
        UsageError: these points have no such thing.
    """
    labelled = getattr(looked_at.data, "labels", None) is not None
    default = "label" if labelled else "energy" if looked_at.tokenizer is None else "length"
    if asked == "label" and not labelled:
        raise UsageError("--colour label: these have no labels; length and energy are of sentences, energy of images")
    if asked == "length" and looked_at.tokenizer is None:
        raise UsageError("--colour length is of sentences: images are coloured by energy, or by label")
    return asked or default


def _describe(drawn: "LatentMap", chains: int) -> str:
    """A map in a line."""
    points = f"{len(drawn.names):,} posterior means of {chains} chains each"
    if drawn.shares is None:
        return f"{points}, by UMAP"
    first, second = drawn.shares
    return f"{points}; their first two principal directions hold {first:.1%} and {second:.1%} of the variance"
