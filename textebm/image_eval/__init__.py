"""Measuring images against images: Fréchet distances such as FID, KID, precision and recall. It knows no model of ours.

    from textebm.image_eval import FeatureExtractor, frechet_score, open_images
    extractor = FeatureExtractor.load("mobilenetv2")
    print(frechet_score(open_images(Path("generated")), open_images(Path("real")), extractor).to_json())

Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textebm.image_eval.features import FeatureExtractor as FeatureExtractor
    from textebm.image_eval.frechet import Gaussian as Gaussian
    from textebm.image_eval.frechet import fit as fit
    from textebm.image_eval.frechet import frechet_distance as frechet_distance
    from textebm.image_eval.images import ArrayImages as ArrayImages
    from textebm.image_eval.images import ImageFiles as ImageFiles
    from textebm.image_eval.images import ImageSet as ImageSet
    from textebm.image_eval.images import open_images as open_images
    from textebm.image_eval.kernel import kernel_distance as kernel_distance
    from textebm.image_eval.manifold import overlap as overlap
    from textebm.image_eval.scores import Score as Score
    from textebm.image_eval.scores import Settings as Settings
    from textebm.image_eval.scores import frechet_score as frechet_score

_HOMES = {
    "ArrayImages": "images",
    "FeatureExtractor": "features",
    "Gaussian": "frechet",
    "ImageFiles": "images",
    "ImageSet": "images",
    "Score": "scores",
    "Settings": "scores",
    "fit": "frechet",
    "frechet_distance": "frechet",
    "frechet_score": "scores",
    "kernel_distance": "kernel",
    "open_images": "images",
    "overlap": "manifold",
}

__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
