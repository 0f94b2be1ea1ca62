"""InceptionV3 in the form of the published weights: names, shapes, preprocessing, features."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textebm.image_eval import inception

Shapes = Mapping[str, tuple[int, ...]]
Pictures = Callable[..., NDArray[np.uint8]]

PUBLISHED_BYTES = 95_628_359
"""Size of pt_inception-2015-12-05-6726825d.pth."""


@pytest.fixture(scope="module")
def network(inception_weights: dict[str, Tensor]) -> nn.Module:
    return inception.from_state(inception_weights)


class TestLayout:
    def test_names_and_shapes(self, inception_shapes: Shapes) -> None:
        ours = {name: tuple(value.shape) for name, value in inception.InceptionV3().state_dict().items()}
        assert ours == inception_shapes

    def test_the_list_fills_the_published_file(self, inception_shapes: Shapes) -> None:
        """Four bytes a number, and the little that torch's format adds to each of its 472 tensors."""
        assert len(inception_shapes) == 472
        added = PUBLISHED_BYTES - 4 * sum(int(np.prod(shape)) for shape in inception_shapes.values())
        assert 0 < added < 500 * len(inception_shapes)

    def test_a_missing_tensor_is_refused(self, inception_weights: dict[str, Tensor]) -> None:
        lacking = {name: value for name, value in inception_weights.items() if name != "Mixed_7c.branch_pool.bn.bias"}
        with pytest.raises(RuntimeError, match=r"Mixed_7c\.branch_pool\.bn\.bias"):
            inception.from_state(lacking)


class TestFeatures:
    def test_against_torch_fidelity(self, network: nn.Module, pictures: Pictures) -> None:
        """What torch-fidelity's network gives in float64 for the same weights and images, in all and in places."""
        images = torch.from_numpy(pictures(2, 32, 40))
        with torch.inference_mode():
            features = network(inception.prepare_as_tensorflow(images))
        assert features.shape == (2, 2048)
        assert features.sum(dim=1).tolist() == pytest.approx([145.4935, 146.0925], abs=2e-4)
        found = features[:, [0, 2, 1600, 2000]].flatten().tolist()
        expected = [0.013180, 0.114706, 0.068785, 0.032588, 0.013688, 0.115586, 0.069800, 0.032234]
        assert found == pytest.approx(expected, abs=2e-6)

    def test_quirks_of_the_pools(self) -> None:
        """The average leaves the padding out: of ones it is 1 at the border too. The last block takes the maximum."""
        ones = torch.ones(1, 1, 8, 8)
        net = inception.InceptionV3()
        for name in ("Mixed_5b", "Mixed_6e", "Mixed_7b"):
            assert torch.equal(net.get_submodule(name)._pooled(ones), ones)
        ramp = torch.arange(9.0).view(1, 1, 3, 3)
        expected = [[4.0, 5, 5], [7, 8, 8], [7, 8, 8]]
        assert net.get_submodule("Mixed_7c")._pooled(ramp)[0, 0].tolist() == expected

    def test_eval_for_good(self, network: nn.Module) -> None:
        assert not any(parameter.requires_grad for parameter in network.parameters())


class TestPreprocessing:
    def test_tensorflow_resizes_from_the_corners(self) -> None:
        """Output i is input position i · old / new; behind the last pixel there is the last pixel."""
        line = torch.tensor([0.0, 8.0]).view(1, 1, 1, 2)
        assert inception.resize_as_tensorflow(line, 8)[0, 0, 0].tolist() == [0, 2, 4, 6, 8, 8, 8, 8]
        assert inception.resize_as_tensorflow(line, 8)[0, 0, 7].tolist() == [0, 2, 4, 6, 8, 8, 8, 8]

    def test_tensorflow_picks_where_it_shrinks(self) -> None:
        column = torch.arange(8.0).view(1, 1, 8, 1)
        assert inception.resize_as_tensorflow(column, 2)[0, 0, :, 0].tolist() == [0, 4]

    @pytest.mark.parametrize("height", [20, 299, 410])
    def test_of_its_own_size_nothing_moves(self, height: int) -> None:
        image = torch.rand(1, 3, height, height)
        assert torch.equal(inception.resize_as_tensorflow(image, height), image)

    def test_scales(self) -> None:
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
        tensorflow, pytorch = inception.prepare_as_tensorflow(ends), inception.prepare_as_pytorch_fid(ends)
        assert tensorflow.shape == pytorch.shape == (2, 3, 299, 299)
        assert tensorflow[:, 0, 0, 0].tolist() == [-1, (255 - 128) / 128]
        assert pytorch[:, 0, 0, 0].tolist() == [-1, 1]

    def test_the_two_differ_by_half_a_pixel(self) -> None:
        """So figures of the one do not compare with figures of the other."""
        ramp = (torch.arange(32) * 4).to(torch.uint8).expand(1, 3, 32, 32)
        tensorflow = inception.prepare_as_tensorflow(ramp) * 128 + 128
        pytorch = (inception.prepare_as_pytorch_fid(ramp) + 1) * 127.5
        shift = (tensorflow - pytorch)[0, 0, 0, 50:250]
        assert shift.mean().item() == pytest.approx(4 * (0.5 - 0.5 * 32 / 299), abs=1e-3)


def test_torch_and_safetensors_files_load(
    inception_weights: dict[str, Tensor], inception_file: Path, tmp_path: Path, pictures: Pictures
) -> None:
    """Both forms of a file give the same network, through the door that commands use."""
    from safetensors.torch import save_file

    from textebm.image_eval.features import FeatureExtractor

    save_file(inception_weights, tmp_path / "weights.safetensors")
    found = [
        FeatureExtractor.load(name, file).features_of([pictures(1)])
        for name in ("inception", "inception-pytorch-fid")
        for file in (inception_file, tmp_path / "weights.safetensors")
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[2], found[3])
    assert not np.allclose(found[0], found[2], rtol=1e-3, atol=0)
