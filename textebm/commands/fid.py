"""`textebm fid`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options
from textebm.commands.terminal import choose_device, parse, progress_bar, say, write

if TYPE_CHECKING:
    from textebm.image_eval.images import ImageSet
    from textebm.image_eval.scores import Score


def fid(arguments: Sequence[str]) -> int:
    """`textebm fid`."""
    chosen = parse(options.Fid, "fid", arguments)
    from textebm.image_eval import FeatureExtractor, Settings, frechet_score

    settings = Settings(
        n=chosen.n,
        real_n=chosen.real_n,
        others=not chosen.frechet_only,
        kid_subsets=chosen.kid_subsets,
        kid_subset_size=chosen.kid_subset_size,
        neighbours=chosen.neighbours,
        seed=chosen.seed,
    )
    generated, real = (_images(name, chosen.skip_bad) for name in (chosen.samples, chosen.data))
    extractor = FeatureExtractor.load(chosen.features, chosen.weights, choose_device(chosen.device))
    total = (settings.n or len(generated)) + (settings.real_n or len(real))
    with progress_bar(total, "image") as bar:
        score = frechet_score(generated, real, extractor, settings, data=Path(chosen.data).name, advance=bar.update)
    for warning in score.warnings:
        say(f"warning: {warning}")
    write(score.to_json() if chosen.format == "json" else describe(score), chosen.output)
    return 0


def _images(name: str, skip_bad: bool) -> "ImageSet":
    """The images that an option names; says how many were left out."""
    from textebm.image_eval.images import ImageFiles, open_images

    images = open_images(Path(name))
    if not (skip_bad and isinstance(images, ImageFiles)):
        return images
    readable, bad = images.readable()
    if bad:
        say(f"{name}: {len(bad):,} of {len(images):,} files cannot be read and are left out, the first is {bad[0]}")
    return readable


TITLES = {"fid": "FID", "frechet-mobilenetv2": "Fréchet distance of MobileNetV2's features (no FID)"}


def describe(score: "Score") -> str:
    """A score for people."""
    details = score.details
    title = TITLES.get(
        score.metric, "Fréchet distance of Inception's features, weights not the published ones (no FID)"
    )
    lines = [
        f"{title}: {score.score:.3f}{_between(score.interval)}",
        f"{details['generated']['images']:,} generated images of {details['generated']['of']:,}, "
        f"{details['real']['images']:,} real ones of {details['real']['of']:,}",
    ]
    return "\n".join([*lines, *_describe_others(details), f"signature: {score.signature}"])


def _between(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    return f"  (95 % interval {interval[0]:.3f} to {interval[1]:.3f}, the real images held fixed)"


def _describe_others(details: dict[str, Any]) -> list[str]:
    lines = []
    if (kid := details.get("kid")) is not None:
        spread = "" if kid["sd"] is None else f" ± {kid['sd']:.5f}"
        lines.append(f"KID {kid['mean']:.5f}{spread} over {kid['subsets']} subsets of {kid['size']:,}")
    if (overlap := details.get("overlap")) is not None:
        names = ("precision", "recall", "density", "coverage")
        lines.append(", ".join(f"{name} {overlap[name]:.3f}" for name in names))
    return lines
