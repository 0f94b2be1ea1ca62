"""FID and its relatives of generated images against real ones, with a signature and what stands beside it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textebm._version import __version__
from textebm.errors import UsageError
from textebm.image_eval import frechet, kernel, manifold, store
from textebm.image_eval.features import FeatureExtractor
from textebm.image_eval.images import ImageSet, spread
from textebm.lm_eval.signature import SHORT, Signature


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        n: generated images, spread evenly over those that there are; None for all.
        real_n: real images, likewise.
        others: whether KID, precision, recall, density and coverage are measured beside the Fréchet distance.
        kid_subsets, kid_subset_size: of KID.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        seed: of KID's subsets.
    """

    n: int | None = None
    real_n: int | None = None
    others: bool = True
    kid_subsets: int = kernel.SUBSETS
    kid_subset_size: int = kernel.SUBSET_SIZE
    neighbours: int = manifold.NEIGHBOURS
    density_neighbours: int = manifold.DENSITY_NEIGHBOURS
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"n": 2, "real_n": 2, "kid_subsets": 1, "kid_subset_size": 2, "neighbours": 1, "density_neighbours": 1}
        for name, smallest in (least | {"seed": 0}).items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UsageError(f"{name} is {value}: it must be at least {smallest}")


@dataclass(frozen=True)
class Score:
    """A Fréchet distance, how sure it is, how it was computed, and what stands beside it."""

    metric: str
    """`fid` of the published Inception weights alone; otherwise the name says whose features they are."""
    score: float
    interval: tuple[float, float] | None
    """95 % interval over samples of generated images of this number, the real images held fixed; None of fewer than 40.
    It does not cover the bias, which makes the distance of few images too large."""
    signature: Signature
    details: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figure must know."""
        found: list[str] = self.details["warnings"]
        return found

    def to_json(self) -> str:
        """The score as one JSON object."""
        described = asdict(self) | {"signature": str(self.signature)}
        return json.dumps(described, ensure_ascii=False, indent=2, allow_nan=False)


def frechet_score(
    generated: ImageSet,
    real: ImageSet,
    extractor: FeatureExtractor,
    settings: Settings | None = None,
    *,
    facts: Mapping[str, str] | None = None,
    cache: Path | None = None,
    advance: Callable[[int], object] | None = None,
) -> Score:
    """Fréchet distance of generated images from real ones: the FID, of features of the published Inception.

    Args:
        generated, real: the images.
        extractor: of features.
        settings: what is measured; the defaults by default.
        facts: what the signature is to say of the images: `data`, which is the real images' name by default, `against`,
            their split, `prior-steps`.
        cache: folder in which features of real images are kept; that of TEXTEBM_HOME by default.
        advance: told how many images have been done since it was last called.

    Raises:
        UsageError: there are fewer images than are asked for, or fewer than two.
        DataError: an image cannot be read.
    """
    settings = settings or Settings()
    rows = {
        "generated": spread(settings.n or len(generated), len(generated)),
        "real": spread(settings.real_n or len(real), len(real)),
    }
    of_real = store.features_of(extractor, real, rows["real"], cache=cache, advance=advance)
    of_generated = store.features_of(extractor, generated, rows["generated"], keep=False, advance=advance)
    first, second = frechet.fit(of_generated.features), frechet.fit(of_real.features)
    distance = frechet.frechet_distance(first, second)
    error = frechet.standard_error(of_generated.features, second)
    shift = first.mean - second.mean
    details = {
        "standard_error": error,
        "parts": {"means": float(shift @ shift), "covariances": distance - float(shift @ shift)},
        **(_others(of_generated, of_real, settings) if settings.others else {}),
        "generated": _described(generated, of_generated),
        "real": _described(real, of_real) | {"cached": of_real.kept},
        "features": {
            "implementation": extractor.implementation.name,
            "size": extractor.implementation.size,
            "weights_sha256": extractor.weights_sha256,
            "published_weights": extractor.published,
        },
        "warnings": _warnings(extractor, first, second),
    }
    signature = _signature({"data": real.name, **(facts or {})}, of_real, first.count, extractor)
    return Score(extractor.metric, distance, _interval(distance, error), signature, details)


def _signature(facts: dict[str, str], real: store.Kept, generated: int, extractor: FeatureExtractor) -> Signature:
    return Signature(
        {
            "metric": extractor.metric,
            **facts,
            "real": real.digest[:SHORT],
            "real-n": len(real.features),
            "n": generated,
            **extractor.facts,
            "interval": f"jackknife-{frechet.GROUPS}",
            "version": __version__,
        }
    )


def _interval(distance: float, error: float | None) -> tuple[float, float] | None:
    if error is None:
        return None
    margin = frechet.T_95 * error
    return max(0.0, distance - margin), distance + margin


def _others(generated: store.Kept, real: store.Kept, settings: Settings) -> dict[str, Any]:
    """KID, and the overlap where there are images enough for it."""
    kid = kernel.kernel_distance(
        generated.features,
        real.features,
        subsets=settings.kid_subsets,
        size=settings.kid_subset_size,
        seed=settings.seed,
    )
    neighbours = {"neighbours": settings.neighbours, "density_neighbours": settings.density_neighbours}
    enough = min(len(generated.features), len(real.features)) > max(neighbours.values())
    overlap = asdict(manifold.overlap(generated.features, real.features, **neighbours)) if enough else None
    return {
        "kid": asdict(kid) | {"seed": settings.seed},
        "overlap": None if overlap is None else overlap | neighbours,
    }


def _described(images: ImageSet, found: store.Kept) -> dict[str, Any]:
    return {"name": images.name, "images": len(found.features), "of": len(images), "sha256": found.digest}


def _warnings(extractor: FeatureExtractor, generated: frechet.Gaussian, real: frechet.Gaussian) -> list[str]:
    warnings = []
    implementation = extractor.implementation
    for what, gaussian in (("generated", generated), ("real", real)):
        if gaussian.is_singular:
            warnings.append(
                f"{gaussian.count:,} {what} images are no more than the {implementation.size:,} features: their "
                "covariance is singular, and the distance is too large by far; compare it at this number alone"
            )
    if not extractor.published:
        warnings.append(
            f"these weights are not the published ones of {implementation.network} (SHA-256 "
            f"{extractor.weights_sha256[:SHORT]}…, published {implementation.published.sha256[:SHORT]}…): the figure "
            "compares with figures of the same weights alone"
        )
    elif implementation.metric != "fid":
        warnings.append(f"{implementation.metric} is no FID: compare it with figures of the same name alone")
    return warnings
