"""`textebm fid`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options
from textebm.commands.terminal import choose_device, find_images, model_folder, parse, progress_bar, say, write
from textebm.errors import UsageError

if TYPE_CHECKING:
    import torch

    from textebm.data.registry import Split
    from textebm.image_eval.images import ImageSet
    from textebm.image_eval.scores import Score


DRAWN = 10_000
"""Images drawn from a model where no number is given."""


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
    given = None if chosen.samples is None else _samples(chosen, chosen.samples)
    folder = model_folder(chosen) if chosen.samples is None or chosen.data is None else None
    real, facts = _real(chosen, folder)
    device = choose_device(chosen.device)
    extractor = FeatureExtractor.load(chosen.features, chosen.weights, device, say)  # before hours of drawing
    generated, more = _drawn(chosen, folder, device) if given is None else (given, {})
    total = (settings.n or len(generated)) + (settings.real_n or len(real))
    with progress_bar(total, "image") as bar:
        score = frechet_score(generated, real, extractor, settings, facts=facts | more, advance=bar.update)
    for warning in score.warnings:
        say(f"warning: {warning}")
    write(score.to_json() if chosen.format == "json" else describe(score), chosen.output)
    return 0


def _samples(chosen: options.Fid, samples: str) -> "ImageSet":
    """The images that --samples names."""
    from textebm.data.registry import SPLITS

    if chosen.prior_steps is not None:
        raise UsageError("--prior-steps is of images that a model draws, and does not go with --samples")
    name, _, end = samples.rpartition(":")
    for split in SPLITS:
        if split == end and _is_data_set(name):
            return _split_of(chosen, name, split)
    if _is_data_set(samples):
        raise UsageError(f"--samples {samples} is a data set: say which split, as in {samples}:test")
    return _given(samples, chosen.skip_bad)


def _drawn(chosen: options.Fid, folder: Path | None, device: "torch.device") -> "tuple[ImageSet, dict[str, str]]":
    """Images that a model draws, the means of latents from the prior chain, and what the signature says of them."""
    import torch

    from textebm import generation, image_generation, png
    from textebm.image_eval.images import ArrayImages

    assert folder is not None  # it was looked for, where there are no --samples
    if chosen.prior_steps is not None and chosen.prior_steps < 0:
        raise UsageError(f"--prior-steps is {chosen.prior_steps}: it must be 0 or more")
    model, n, parts = image_generation.load(folder, device), chosen.n or DRAWN, []
    with progress_bar(n, "image", what="drawing") as bar:
        for part in image_generation.generate(model, n, chosen.seed, chosen.prior_steps):
            parts.append(png.to_bytes(part.images))
            bar.update(len(part.images))
    steps = generation.other_chain(model, chosen.prior_steps)
    return ArrayImages("drawn", torch.cat(parts).numpy()), {} if steps is None else {"prior-steps": str(steps)}


def _real(chosen: options.Fid, folder: Path | None) -> "tuple[ImageSet, dict[str, str]]":
    """The images that --data names, or that the model was trained on, and what the signature says of them."""
    split: Split = chosen.against or "train"
    if chosen.data is None:
        assert folder is not None  # it was looked for
        return trained_on(folder, split, chosen.data_dir)
    if _is_data_set(chosen.data):
        return _split_of(chosen, chosen.data, split), {"data": chosen.data, "against": split}
    if chosen.against is not None:
        raise UsageError(
            f"--against names a split of a data set, and --data {chosen.data} has none: all of it is taken"
        )
    return _given(chosen.data, chosen.skip_bad), {"data": Path(chosen.data).name}


def trained_on(
    folder: Path, split: "Split", data_dir: str | None, data: str | None = None
) -> "tuple[ImageSet, dict[str, str]]":
    """A split of what a model was trained on, and what a signature says of it.

    Args:
        folder: the model's.
        split: which one; train is the published one, whole.
        data_dir: where local copies are (default: where they were).
        data: other images than its own, which are then in the size of those that it makes.
    """
    from textebm.image_eval.images import ArrayImages

    corpus = find_images(folder, data, data_dir, whole_train=True)
    name = f"{corpus.name}:{split}"
    return ArrayImages(name, corpus.encoded(split).pixels), {"data": corpus.name, "against": split}


def _is_data_set(name: str) -> bool:
    """Whether a name is that of images with splits: one that has a card, or one of the library datasets."""
    from textebm.data.image_cards import image_card_names
    from textebm.data.sources import HUB_PREFIX

    return name in image_card_names() or name.startswith(HUB_PREFIX)


def _split_of(chosen: options.Fid, name: str, split: "Split") -> "ImageSet":
    """A split of a data set; train is the published one, whole."""
    from textebm.data.images import download_notice, resolve_images
    from textebm.image_eval.images import ArrayImages

    if (notice := download_notice(name, chosen.data_dir)) is not None:
        say(f"downloading {notice}")
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
