"""`textebm fid`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options
from textebm.commands.terminal import choose_device, parse, progress_bar, say, write
from textebm.errors import UsageError

if TYPE_CHECKING:
    from textebm.data.registry import Split
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
    generated, (real, split) = _generated(chosen), _real(chosen)
    extractor = FeatureExtractor.load(chosen.features, chosen.weights, choose_device(chosen.device), say)
    total = (settings.n or len(generated)) + (settings.real_n or len(real))
    with progress_bar(total, "image") as bar:
        name = Path(chosen.data).name if split is None else chosen.data
        score = frechet_score(generated, real, extractor, settings, data=name, against=split, advance=bar.update)
    for warning in score.warnings:
        say(f"warning: {warning}")
    write(score.to_json() if chosen.format == "json" else describe(score), chosen.output)
    return 0


def _generated(chosen: options.Fid) -> "ImageSet":
    """The images that --samples names."""
    from textebm.data.registry import SPLITS

    name, _, end = chosen.samples.rpartition(":")
    for split in SPLITS:
        if split == end and _is_data_set(name):
            return _split_of(chosen, name, split)
    if _is_data_set(chosen.samples):
        raise UsageError(f"--samples {chosen.samples} is a data set: say which split, as in {chosen.samples}:test")
    return _given(chosen.samples, chosen.skip_bad)


def _real(chosen: options.Fid) -> "tuple[ImageSet, str | None]":
    """The images that --data names, and the split that they are."""
    if _is_data_set(chosen.data):
        split: Split = chosen.against or "train"
        return _split_of(chosen, chosen.data, split), split
    if chosen.against is not None:
        raise UsageError(
            f"--against names a split of a data set, and --data {chosen.data} has none: all of it is taken"
        )
    return _given(chosen.data, chosen.skip_bad), None


def _is_data_set(name: str) -> bool:
    """Whether a name is that of images with splits: one that has a card, or one of the library datasets."""
    from textebm.data.image_cards import image_card_names
    from textebm.data.sources import HUB_PREFIX

    return name in image_card_names() or name.startswith(HUB_PREFIX)


def _split_of(chosen: options.Fid, name: str, split: "Split") -> "ImageSet":
    """A split of a data set; train is the published one, whole."""
    from textebm.data.images import resolve_images
    from textebm.image_eval.images import ArrayImages

    corpus = resolve_images(name, chosen.data_dir, whole_train=True, skip_bad=chosen.skip_bad)
    return ArrayImages(f"{corpus.name}:{split}", corpus.encoded(split).pixels)


def _given(name: str, skip_bad: bool) -> "ImageSet":
    """The images of a folder, an archive or an array; says how many were left out."""
    from textebm.image_eval.images import ImageFiles, open_images

    images = open_images(Path(name).expanduser())
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
