"""A score: what it is made of, what its signature says, what is kept of real images."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.image_eval import frechet, kernel, manifold, store
from textebm.image_eval.features import FeatureExtractor, Implementation
from textebm.image_eval.images import ArrayImages
from textebm.image_eval.scores import Score, Settings, frechet_score
from textebm.lm_eval.signature import KNOWN

Pictures = Callable[..., NDArray[np.uint8]]


class Counted(ArrayImages):
    """Images that count how often they are read."""

    read = 0

    def batches(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        self.read += len(rows)
        return super().batches(rows)


@pytest.fixture
def extractor(toy: Implementation, toy_file: Path) -> FeatureExtractor:
    return FeatureExtractor.load("mobilenetv2", toy_file)


@pytest.fixture
def generated(pictures: Pictures) -> Counted:
    return Counted("generated", pictures(60, seed=3) // 2)


@pytest.fixture
def real(pictures: Pictures) -> Counted:
    return Counted("real", pictures(80, seed=4))


@pytest.fixture
def score(generated: Counted, real: Counted, extractor: FeatureExtractor, home: Path) -> Score:
    return frechet_score(generated, real, extractor)


class TestFigures:
    def test_they_are_those_of_the_features(
        self, score: Score, generated: Counted, real: Counted, extractor: FeatureExtractor
    ) -> None:
        a, b = (extractor.features_of(side.batches(np.arange(len(side)))) for side in (generated, real))
        assert score.score == pytest.approx(frechet.frechet_distance(frechet.fit(a), frechet.fit(b)), rel=1e-6)
        kid = kernel.kernel_distance(a, b)
        assert score.details["kid"]["mean"] == pytest.approx(kid.mean, rel=1e-5)
        assert score.details["overlap"]["recall"] == manifold.overlap(a, b).recall
        assert score.details["overlap"]["neighbours"] == 3
        error = frechet.standard_error(a, frechet.fit(b))
        assert error is not None and score.interval is not None
        assert score.interval[1] - score.score == pytest.approx(frechet.T_95 * error, rel=1e-4)

    def test_parts_add_up(self, score: Score) -> None:
        assert sum(score.details["parts"].values()) == pytest.approx(score.score)
        assert min(score.details["parts"].values()) > 0

    def test_an_image_set_against_itself(self, real: Counted, extractor: FeatureExtractor, home: Path) -> None:
        score = frechet_score(real, real, extractor)
        assert score.score == pytest.approx(0, abs=1e-9)
        assert score.details["overlap"]["precision"] == score.details["overlap"]["recall"] == 1

    def test_rows_are_spread(self, generated: Counted, real: Counted, extractor: FeatureExtractor, home: Path) -> None:
        """Every second image of the one, every fourth of the other."""
        found = frechet_score(generated, real, extractor, Settings(n=30, real_n=20))
        halves = [np.concatenate(list(s.batches(np.arange(0, len(s), n)))) for s, n in ((generated, 2), (real, 4))]
        expected = frechet_score(ArrayImages("a", halves[0]), ArrayImages("b", halves[1]), extractor)
        assert found.score == pytest.approx(expected.score, rel=1e-6)
        assert (found.signature["n"], found.signature["real-n"]) == ("30", "20")
        assert found.signature["real"] == expected.signature["real"]

    def test_few_images(self, generated: Counted, real: Counted, extractor: FeatureExtractor, home: Path) -> None:
        """No interval of fewer than 40, no neighbours of 5: said by None, not by figures."""
        score = frechet_score(generated, real, extractor, Settings(n=5))
        assert score.interval is None
        assert score.details["overlap"] is None
        assert json.loads(score.to_json())["interval"] is None

    def test_without_the_others(
        self, generated: Counted, real: Counted, extractor: FeatureExtractor, home: Path
    ) -> None:
        score = frechet_score(generated, real, extractor, Settings(others=False))
        assert "kid" not in score.details
        assert "overlap" not in score.details

    @pytest.mark.parametrize(
        "wrong",
        [{"n": 1}, {"real_n": 0}, {"kid_subsets": 0}, {"kid_subset_size": 1}, {"neighbours": 0}, {"seed": -1}],
    )
    def test_settings_out_of_range(self, wrong: dict[str, int]) -> None:
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
            Settings(**wrong)


class TestSignature:
    def test_what_it_says(self, score: Score) -> None:
        assert list(score.signature) == [
            *("metric", "data", "real", "real-n", "n", "features", "weights", "preprocessing", "interval", "version")
        ]
        assert set(score.signature) <= set(KNOWN)
        assert (score.metric, score.signature["metric"]) == ("frechet-mobilenetv2", "frechet-mobilenetv2")

    @pytest.mark.parametrize("setting", [{"n": 59}, {"real_n": 79}])
    def test_other_numbers_never_compare(
        self,
        setting: dict[str, int],
        score: Score,
        generated: Counted,
        real: Counted,
        extractor: FeatureExtractor,
    ) -> None:
        other = frechet_score(generated, real, extractor, Settings(**setting))
        verdict = score.signature.compare(other.signature)
        assert not verdict.comparable
        assert set(verdict.decisive) <= {"n", "real-n", "real"}

    def test_another_sample_compares(
        self, score: Score, real: Counted, extractor: FeatureExtractor, pictures: Pictures
    ) -> None:
        other = frechet_score(ArrayImages("others", pictures(60, seed=9)), real, extractor)
        assert other.score != score.score
        assert score.signature.compare(other.signature).comparable

    def test_json(self, score: Score) -> None:
        found = json.loads(score.to_json())
        assert list(found) == ["metric", "score", "interval", "signature", "details"]
        assert found["signature"] == str(score.signature)
        assert found["details"]["features"]["published_weights"] is True


class TestWarnings:
    @pytest.mark.parametrize(("n", "warned"), [(9, True), (10, False)])
    def test_of_singular_covariances(
        self, n: int, warned: bool, generated: Counted, real: Counted, extractor: FeatureExtractor, home: Path
    ) -> None:
        """The toy's features have 9 numbers."""
        warnings = frechet_score(generated, real, extractor, Settings(n=n)).warnings
        assert any("covariance is singular" in warning for warning in warnings) == warned

    def test_the_substitute_is_no_fid(self, score: Score) -> None:
        assert any("is no FID" in warning for warning in score.warnings)

    def test_of_other_weights(
        self, generated: Counted, real: Counted, toy: Implementation, tmp_path: Path, home: Path
    ) -> None:
        import torch

        torch.save({"scale": torch.tensor(3.0)}, tmp_path / "other.pth")
        score = frechet_score(generated, real, FeatureExtractor.load("mobilenetv2", tmp_path / "other.pth"))
        assert any("not the published ones" in warning for warning in score.warnings)
        assert score.details["features"]["published_weights"] is False


class TestStore:
    def test_real_features_are_computed_once(
        self, score: Score, generated: Counted, real: Counted, extractor: FeatureExtractor
    ) -> None:
        assert score.details["real"]["cached"] is False
        assert real.read == 160  # for the digest, and for the features
        again = frechet_score(generated, real, extractor)
        assert again.details["real"]["cached"] is True
        assert real.read == 240  # for the digest alone
        assert again.score == score.score

    @pytest.mark.parametrize("change", ["number", "order", "pixel", "weights", "preprocessing"])
    def test_nothing_else_is_taken_for_them(
        self,
        change: str,
        score: Score,
        generated: Counted,
        real: Counted,
        extractor: FeatureExtractor,
        monkeypatch: pytest.MonkeyPatch,
        pictures: Pictures,
    ) -> None:
        array, settings = pictures(80, seed=4), Settings()
        if change == "number":
            settings = Settings(real_n=79)
        elif change == "order":
            array = array[::-1]
        elif change == "pixel":
            array[7, 1, 2, 3] ^= 1
        elif change == "weights":
            extractor.weights_sha256 = "0" * 64
        else:
            implementation = extractor.implementation
            monkeypatch.setattr(
                extractor, "implementation", type(implementation)(**{**vars(implementation), "preprocessing": "other"})
            )
        assert frechet_score(generated, Counted("real", array), extractor, settings).details["real"]["cached"] is False

    @pytest.mark.parametrize("damage", ["cut", "flipped"])
    def test_damage_is_noticed(
        self, damage: str, score: Score, generated: Counted, real: Counted, extractor: FeatureExtractor
    ) -> None:
        (path,) = store.folder().glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-9] ^= 255
        path.write_bytes(content[:-20] if damage == "cut" else content)
        again = frechet_score(generated, real, extractor)
        assert again.details["real"]["cached"] is False
        assert again.score == score.score
        assert frechet_score(generated, real, extractor).details["real"]["cached"] is True

    def test_progress_counts_every_image_once(
        self, score: Score, generated: Counted, real: Counted, extractor: FeatureExtractor
    ) -> None:
        for _ in ("cached", "cached still"):
            done: list[int] = []
            frechet_score(generated, real, extractor, advance=done.append)
            assert sum(done) == 140
