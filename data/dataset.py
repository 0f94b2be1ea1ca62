"""What a split is to whoever works on it: samples of x by number, whatever x is."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from textebm.model.generators import Batch


class Dataset(Protocol):
    """The samples of one split."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, rows: NDArray[np.int64], /) -> Batch:
        """The samples with these numbers, in the order given."""
        ...

    def groups(self, rows: NDArray[np.int64], size: int, /) -> list[NDArray[np.int64]]:
        """Which samples are worked on together outside training: places in `rows`, at most `size` in each group."""
        ...
