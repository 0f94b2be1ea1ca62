"""Small models and hand-made batches for the tests of the maths."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from textebm.config import GeneratorConfig
from textebm.model.recurrent import BOS, EOS, PAD, RecurrentGenerator, TextBatch

MakeBatch = Callable[..., TextBatch]
MakeGenerator = Callable[..., RecurrentGenerator]


@pytest.fixture
def make_batch() -> MakeBatch:
    """Sentences (lists of word ids) as one batch, with as many more columns of padding as asked for."""

    def make(sentences: Sequence[Sequence[int]], extra_columns: int = 0) -> TextBatch:
        width = max(len(s) for s in sentences) + 1 + extra_columns
        inputs = torch.full((len(sentences), width), PAD)
        targets = inputs.clone()
        for row, sentence in enumerate(sentences):
            inputs[row, : len(sentence) + 1] = torch.tensor([BOS, *sentence])
            targets[row, : len(sentence) + 1] = torch.tensor([*sentence, EOS])
        return TextBatch(inputs, targets, torch.tensor([len(s) + 1 for s in sentences]))

    return make


@pytest.fixture
def make_generator() -> MakeGenerator:
    """A float64 recurrent generator whose weights are large enough for z and the words to matter."""

    def make(
        vocab_size: int = 11, latent_dim: int = 3, init_range: float = 0.7, seed: int = 1, **config
    ) -> RecurrentGenerator:
        sizes = {"embedding_dim": 4, "hidden_dim": 5, "init_range": init_range, **config}
        source = torch.Generator().manual_seed(seed)
        return RecurrentGenerator(GeneratorConfig(**sizes), vocab_size, latent_dim, source).double()

    return make


@pytest.fixture
def slope() -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """Central differences: the gradient of each row's value in that row of z."""

    def central(function: Callable[[Tensor], Tensor], z: Tensor, width: float = 1e-5) -> Tensor:
        columns = []
        for column in range(z.shape[1]):
            shift = torch.zeros_like(z)
            shift[:, column] = width
            columns.append((function(z + shift) - function(z - shift)) / (2 * width))
        return torch.stack(columns, dim=1)

    return central
