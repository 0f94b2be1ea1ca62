"""`textebm score`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options
from textebm.commands.terminal import (
    beside_text,
    choose_device,
    figure,
    find_images,
    model_folder,
    parse,
    progress_bar,
    read_lines,
    refuse,
    say,
    write,
)
from textebm.errors import UsageError

if TYPE_CHECKING:
    from textebm.data.dataset import Dataset
    from textebm.scoring import ImageScore, SentenceScore, Summary


def score(arguments: Sequence[str]) -> int:
    """`textebm score`."""
    chosen = parse(options.Score, "score", arguments)
    from textebm.model.latent_model import read_model_config

    folder = model_folder(chosen)
    if read_model_config(folder).generator.kind == "convolutional":
        return _score_images(chosen, folder)
    if chosen.file is None:
        raise UsageError("score wants a text file, one sentence a line, or - for standard input")
    return _score_text(chosen, folder)


def _score_text(chosen: options.Score, folder: Path) -> int:
    """Score the lines of a file."""
    from textebm import generation, scoring
    from textebm.commands.sentences import OF_IMAGES
    from textebm.marginal import Settings
    from textebm.model.ais import Plan

    assert chosen.file is not None  # `score` has seen to it
    refuse(chosen, OF_IMAGES, "n", "split", "data", "data_dir")
    sentences = read_lines(chosen.file)
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    settings = Settings(samples=chosen.samples, plan=Plan(steps=chosen.ais_steps)) if chosen.samples else None
    parts = model.has_latent + (settings is not None)
    with progress_bar(len(sentences) * max(1, parts), "sentence") as bar:
        scores = scoring.score_sentences(
            model, tokenizer, sentences, chosen.seed, chosen.chains, chosen.steps, settings, bar.update
        )
    _write(chosen, scores)
    _say_summary(scoring.summarise(scores))
    return 0


def _score_images(chosen: options.Score, folder: Path) -> int:
    """Score named images, or those of a split."""
    from textebm import image_generation, scoring
    from textebm.commands.images import OF_A_SPLIT, OF_SENTENCES, named_pictures
    from textebm.evaluation import spread

    refuse(chosen, OF_SENTENCES, "samples", "ais_steps")
    model, n = image_generation.load(folder, choose_device(chosen.device)), chosen.n or 0
    data: Dataset
    if chosen.file is not None:
        refuse(chosen, OF_A_SPLIT, "split", "data", "data_dir")
        data = pictures = named_pictures(model, folder, chosen.file)
        names = [pictures.names[row] for row in spread(len(data), n).tolist()]
    else:
        data = find_images(folder, chosen.data, chosen.data_dir).encoded(chosen.split)
        names = [f"{chosen.split}:{row}" for row in spread(len(data), n).tolist()]
    with progress_bar(len(names), "image") as bar:
        scores = scoring.score_images(model, data, names, chosen.seed, n, chosen.chains, chosen.steps, bar.update)
    _write(chosen, scores)
    error = sum(score.mse for score in scores) / len(scores)
    energy = sum(score.energy for score in scores) / len(scores)
    say(f"{len(scores):,} images: energy {energy:.3f}, mean squared error {error:.4f}, pixels in [-1, 1]")
    return 0


def _write(chosen: options.Score, scores: "Sequence[SentenceScore] | Sequence[ImageScore]") -> None:
    """A JSON object a line, or a table."""
    records = [score.as_dict() for score in scores]
    if chosen.format == "jsonl":
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
        write("\n".join(lines), chosen.output)
        return
    shown = [name for name in COLUMNS if any(record.get(name) is not None for record in records)]
    rows = [[_shown(record[name]) for name in shown] for record in records]
    write(beside_text([COLUMNS[name] for name in shown], rows), chosen.output)


COLUMNS = {
    "energy": "energy",
    "log_likelihood": "log p(x|z)",
    "log_likelihood_per_word": "a word",
    "mse": "MSE",
    "marginal_nll": "marginal NLL",
    "marginal_nll_per_word": "a word",
    "words": "words",
    "text": "sentence",
    "image": "image",
}
"""Columns of the table for people, and their headings."""


def _shown(value: Any) -> str:  # noqa: ANN401
    """A value of a record in a cell."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(value)


def _say_summary(found: "Summary") -> None:
    """Means over the sentences."""
    parts = [f"{found.sentences:,} sentences, {found.words:,} words"]
    if found.energy is not None:
        parts.append(f"energy {found.energy:.3f}")
    parts.append(f"log-likelihood {found.log_likelihood:.2f} nats a sentence, perplexity {figure(found.perplexity)}")
    if found.marginal_nll is not None:
        parts.append(f"marginal NLL {found.marginal_nll:.2f}, perplexity {figure(found.marginal_perplexity)}")
    say("; ".join(parts))
    if found.withheld is not None:
        say(f"no marginal NLL: {found.withheld}")
