"""Quality of images over prior steps, by the features of a toy network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from textebm import analysis
from textebm.config import ConvolutionConfig, GeneratorConfig, PriorConfig
from textebm.image_eval import ArrayImages, FeatureExtractor, Settings, frechet_score
from textebm.lm_eval.signature import Signature
from textebm.model.image_batch import ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig

REAL = ArrayImages("squares:train", np.random.RandomState(0).randint(0, 256, (60, 3, 8, 8)).astype(np.uint8))


@pytest.fixture(scope="module")
def model() -> LatentModel:
    """f(z) = w·z, so that chains go from black to white, by a generator that knows no other difference."""
    config = ModelConfig(
        prior=PriorConfig(latent_dim=2, depth=0, steps=5, step_size=0.5),
        generator=GeneratorConfig(kind="convolutional", convolution=ConvolutionConfig(2, 4, (2,))),
        image=ImageShape(3, 8, 8),
    )
    model = LatentModel(config, 1).eval()
    with torch.no_grad():
        model.prior.mlp[0].weight.fill_(3.0)
    return model


@pytest.fixture
def extractor(toy, toy_file: Path, home: Path) -> FeatureExtractor:
    return FeatureExtractor.load("mobilenetv2", toy_file)


def test_it_is_the_distance_of_the_images_that_generate_makes(model, extractor) -> None:
    from textebm import image_generation, png

    judge = analysis.image_judge(REAL, extractor, {"data": "squares", "against": "train"})
    curve = analysis.quality_curve(model, judge, steps=(0, 5, 9), samples=50, seed=3)
    assert curve.metric == "frechet-mobilenetv2"
    assert curve.real is None
    for point, steps in zip(curve.points, (0, None, 9), strict=True):  # None: as in training, which is 5
        (made,) = image_generation.generate(model, 50, 3, steps)
        drawn = ArrayImages("drawn", png.to_bytes(made.images).numpy())
        facts = {"data": "squares", "against": "train"} | ({} if steps is None else {"prior-steps": str(steps)})
        known = frechet_score(drawn, REAL, extractor, Settings(others=False), facts=facts)
        assert point.score == pytest.approx(known.score, rel=1e-3)
        assert point.interval == pytest.approx(known.interval, rel=1e-2)
        assert "prior-steps" not in Signature.parse(point.signature) or steps is not None
    assert any("is no FID" in warning for warning in curve.warnings)


def test_batches(model, extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is lost between batches, and none is made twice."""
    monkeypatch.setattr(analysis, "PAINTED_AT_ONCE", 16)
    seen: list[np.ndarray] = []
    judge = analysis.image_judge(REAL, extractor, {"data": "squares"}, real_n=30)

    def watching(drawn: analysis.Drawn) -> analysis.Rated:
        seen.append(drawn.images)
        return judge(drawn)

    curve = analysis.quality_curve(model, watching, steps=(2,), samples=40)
    assert Signature.parse(curve.points[0].signature)["real-n"] == "30"
    (images,) = seen
    assert images.shape == (40, 3, 8, 8)
    assert len(np.unique(images.reshape(40, -1), axis=0)) > 20
