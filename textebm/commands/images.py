"""What the commands of `textebm.commands.generation` do with a model of images."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options, processes
from textebm.commands.terminal import choose_device, find_images, progress_bar, refuse, say, write, writing
from textebm.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from textebm.data.dataset import Dataset
    from textebm.data.images import EncodedImages
    from textebm.data.registry import Split
    from textebm.given_images import Pictures
    from textebm.model.latent_model import LatentModel

IMAGES = 64
"""Generated where no number is given."""
METRIC = "reconstruction-mse"
DECODING = tuple(field.name for field in dataclasses.fields(options.DecodingOptions))
OF_SENTENCES = "is of sentences, and the model makes images"
OF_A_SPLIT = "is of images of a split, and pictures are named"


def generate(chosen: options.Generate, folder: Path) -> int:
    """Make images from the prior."""
    import torch

    from textebm import generation, image_generation, png

    if chosen.format in ("text", "jsonl"):
        raise UsageError(f"--format {chosen.format} is of sentences, and the model makes images: --format grid or png")
    refuse(chosen, OF_SENTENCES, *DECODING)
    model = image_generation.load(folder, choose_device(chosen.device))
    n, single = chosen.n or IMAGES, chosen.format == "png"
    output = chosen.output or ("generated" if single else "generated.png")
    if single:
        _require_no_others(Path(output), n)
    world = processes.world()
    drawn = image_generation.generate(model, n, chosen.seed, chosen.prior_steps, world)
    if not world.first:
        generation.take_part(drawn)
        return 0
    shown, done = [], 0
    with progress_bar(n, "image") as bar, writing(output):
        for part in drawn:
            if single:
                png.write_images(Path(output), part.images, done)
            else:
                shown.append(part.images)
            done += len(part.images)
            bar.update(len(part.images))
        if not single:
            png.write_grid(Path(output), torch.cat(shown))
    say(f"{n:,} images: {output}")
    return 0


def _require_no_others(folder: Path, n: int) -> None:
    """Check that a folder holds no picture but those that n images will replace: what measures it takes all of them.

    Raises:
        UsageError: it does.
    """
    names = {f"{number:05}.png" for number in range(n)}
    others = sorted(path.name for path in folder.glob("*.png") if path.name not in names) if folder.is_dir() else []
    if others:
        raise UsageError(
            f"{folder} holds {len(others):,} pictures that this command does not write ({others[0]}, ...): name an "
            "empty folder with --output"
        )


def reconstruct(chosen: options.Reconstruct, folder: Path) -> int:
    """Make the images of a split, or named ones, again."""
    import torch

    from textebm import given_images, image_generation, png
    from textebm.evaluation import spread
    from textebm.lm_eval.signature import SHORT

    refuse(chosen, OF_SENTENCES, *DECODING)
    model = image_generation.load(folder, choose_device(chosen.device))
    data: Dataset
    if chosen.file is not None:
        refuse(chosen, OF_A_SPLIT, "split", "data", "data_dir")
        data = pictures = named_pictures(model, folder, chosen.file)
        kept = {"test": pictures.digest[:SHORT], "crop": given_images.crop_of(folder)}
        facts: dict[str, Any] = {"data": Path(chosen.file).name, **kept}
    else:
        data, facts = _split(chosen.split, chosen.data, chosen.data_dir, folder)
    rows = spread(len(data), chosen.n or 0)
    wanted = spread(len(rows), chosen.pairs)  # over all of them, since classes may lie one after the other
    shown: list[tuple[Tensor, Tensor]] = []
    errors: list[Tensor] = []
    done = 0
    with progress_bar(len(rows), "image") as bar:
        for part in image_generation.reconstruct(model, data, rows, chosen.seed):
            here = torch.from_numpy(wanted[(wanted >= done) & (wanted < done + len(part.errors))] - done)
            shown.append((part.originals[here], part.images[here]))
            errors.append(part.errors)
            done += len(part.errors)
            bar.update(len(part.errors))
    grid = chosen.grid or "reconstructions.png"
    above, below = (torch.cat(parts) for parts in zip(*shown, strict=True))
    with writing(grid, "--grid"):
        png.write_grid(Path(grid), *_in_pairs(above, below))
    found = _scored(torch.cat(errors).double().numpy(), model, facts | {"seed": chosen.seed})
    say(f"images above their reconstructions: {grid}")
    described = json.dumps(found, ensure_ascii=False, indent=2) if chosen.format == "json" else _describe(found)
    write(described, chosen.output)
    return 0


def interpolate(chosen: options.Interpolate, folder: Path) -> int:
    """Make the images between pairs."""
    import numpy as np

    from textebm import image_generation, png
    from textebm.evaluation import spread
    from textebm.model.image_batch import ImageBatch

    if (chosen.first is None) != (chosen.last is None):
        raise UsageError("interpolate wants two pictures, or none: the second is missing")
    refuse(chosen, OF_SENTENCES, *DECODING)
    model = image_generation.load(folder, choose_device(chosen.device))
    data: Dataset
    if chosen.first is not None and chosen.last is not None:
        refuse(chosen, OF_A_SPLIT, "data", "data_dir", "lines")
        data, rows = named_pictures(model, folder, chosen.first, chosen.last), np.arange(2)
    else:
        data, _ = _split("test", chosen.data, chosen.data_dir, folder)
        if len(data) < 2:
            raise UsageError("interpolate wants at least two test images, and there is one")
        rows = spread(len(data), min(2 * chosen.lines, len(data) // 2 * 2))
    ends = data.batch(rows)
    assert isinstance(ends, ImageBatch)
    pixels = image_generation.interpolate(model, ends, chosen.points, chosen.seed)
    output = chosen.output or "interpolation.png"
    with writing(output):
        png.write_grid(Path(output), pixels, chosen.points)
    say(f"{len(rows) // 2} lines of {chosen.points} images: {output}")
    return 0


def named_pictures(model: "LatentModel", folder: Path, *names: str) -> "Pictures":
    """Pictures, or those of folders or archives, as a model takes them; says what was done to them.

    Args:
        model: the model.
        folder: where it lies.
        names: of the files or folders.

    Raises:
        DataError: one is missing or no picture, or there is none.
    """
    from textebm import given_images

    shape, crop = model.painter.shape, given_images.crop_of(folder)
    pictures = given_images.Pictures(map(Path, names), shape, crop)
    if pictures.converted:
        modes = ", ".join(f"{count:,} from {mode}" for mode, count in sorted(pictures.converted.items()))
        say(f"{', '.join(names)}: converted to {'grey' if shape.channels == 1 else 'colour'} of 8 bits: {modes}")
    return pictures


def _split(
    split: "Split", data: str | None, data_dir: str | None, folder: Path
) -> tuple["EncodedImages", dict[str, Any]]:
    """A split of the images that a model was trained on, or of others, and what a signature says of it."""
    from textebm.lm_eval.signature import SHORT

    corpus = find_images(folder, data, data_dir)
    images = corpus.encoded(split)
    kept = {"test": images.report.digest[:SHORT], "crop": corpus.fitting.crop}
    return images, {"data": corpus.name, "scored": split, **kept}


def _in_pairs(above: "Tensor", below: "Tensor", columns: int = 8) -> tuple["Tensor", int]:
    """Rows of images, each above the row of what became of it; and how many are in a row."""
    import torch

    columns = min(columns, len(above))
    blank = above.new_ones(-len(above) % columns, *above.shape[1:])
    rows = [torch.cat([part, blank]).view(-1, columns, *above.shape[1:]) for part in (above, below)]
    return torch.stack(rows, 1).flatten(0, 2), columns


def _scored(errors: "NDArray[np.float64]", model: "LatentModel", facts: dict[str, Any]) -> dict[str, Any]:
    """The mean squared error of images, how sure it is, and how it was computed."""
    from textebm._version import __version__
    from textebm.lm_eval import bootstrap
    from textebm.lm_eval.signature import Signature

    inference, score = model.config.inference, float(errors.mean())
    low, high = bootstrap.mean_interval(errors)
    of_images = {"images": len(errors), "shape": str(model.painter.shape), "scale": "-1..1"}
    how = {"metric": METRIC, **facts, **of_images, "inference": inference.kind}
    chain = {"steps": inference.steps} if model.method.has_chain else {}
    signature = Signature(
        {**how, **chain, "posterior-samples": 1, "interval": "bootstrap-1000", "version": __version__}
    )
    details = {
        "images": len(errors),
        "shape": dataclasses.asdict(model.painter.shape),
        "mse_unit": score / 4,
        "interval_unit": [low / 4, high / 4],
        "scales": {"score": "pixels in [-1, 1]", "mse_unit": "pixels in [0, 1]"},
        "smallest": float(errors.min()),
        "largest": float(errors.max()),
    }
    return {
        "metric": METRIC,
        "score": score,
        "interval": [low, high],
        "signature": str(signature),
        "details": details,
    }


def _describe(found: dict[str, Any]) -> str:
    """A score for people."""
    details, (low, high) = found["details"], found["interval"]
    return "\n".join(
        [
            f"mean squared error {found['score']:.4f} (95 % interval {low:.4f} to {high:.4f}), pixels in [-1, 1]; "
            f"{details['mse_unit']:.4f}, pixels in [0, 1]; {details['images']:,} images",
            f"signature: {found['signature']}",
        ]
    )
