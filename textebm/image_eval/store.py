"""Features of real images, computed once and kept in TEXTEBM_HOME: every model that is measured needs them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from textebm import whole_files
from textebm.data import entries
from textebm.errors import DataError
from textebm.home import home
from textebm.image_eval.features import FeatureExtractor
from textebm.image_eval.images import ImageSet, Rows, digest_of

FORMAT = 1
"""Counted up when what is kept changes, so that nothing old is read."""


def folder() -> Path:
    """Where features are kept."""
    return home() / "image-features"


@dataclass(frozen=True)
class Kept:
    """Features of images.

    Args:
        features: shape (images, features).
        digest: SHA-256 of the images' pixels.
        kept: whether they had been computed before.
    """

    features: NDArray[np.float32]
    digest: str
    kept: bool


def features_of(
    extractor: FeatureExtractor,
    images: ImageSet,
    rows: Rows,
    *,
    keep: bool = True,
    cache: Path | None = None,
    advance: Callable[[int], object] | None = None,
) -> Kept:
    """The features of these rows of images, from the cache where they are in it.

    The key is made of the images' pixels, their number and order, and all that decides the features.

    Args:
        extractor: computes them.
        images: of which.
        rows: which of them.
        keep: whether to use the cache.
        cache: its folder; that of TEXTEBM_HOME by default.
        advance: told how many images have been done since it was last called.

    Raises:
        DataError: an image cannot be read, or the cache cannot be written.
    """
    digest = digest_of(images, rows)
    if not keep:
        return Kept(extractor.features_of(images.batches(rows), advance), digest, False)
    written = json.dumps([FORMAT, digest, len(rows), extractor.facts], sort_keys=True)
    path = (cache or folder()) / f"{hashlib.sha256(written.encode()).hexdigest()[:32]}.safetensors"
    with entries.building(path, lambda: _read(path) is not None, "image features") as there:
        if not there:
            found = extractor.features_of(images.batches(rows), advance)
            with whole_files.appearing(path) as temporary:
                _write(found, temporary)
    features = _read(path)
    if features is None:
        raise DataError(f"features that were kept in {path} cannot be read again; is the disk whole?")
    if there and advance is not None:
        advance(len(rows))
    return Kept(features, digest, there)


def _read(path: Path) -> NDArray[np.float32] | None:
    """What was kept; None where there is nothing, or what there is is damaged and will be computed anew."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            features: NDArray[np.float32] = file.get_tensor("features")
            whole = (file.metadata() or {}).get("sha256") == _sha256(features)
    except SafetensorError:
        return None
    return features if whole else None


def _write(features: NDArray[np.float32], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"features": features}, path, metadata={"sha256": _sha256(features)})


def _sha256(features: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
