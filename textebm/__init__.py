"""textebm: generation of text and images with a learned latent prior (latent space energy-based models).

    from textebm import LatentEBM
    model = LatentEBM.from_pretrained("runs/ptb")
    model.generate(10)

`textebm.model` holds the mathematics, `textebm.training` the loop, `textebm.data` where sentences and images
come from, and `textebm.lm_eval` the measuring of text. Nothing heavy is imported until it is used.
"""

from typing import TYPE_CHECKING

from textebm._version import __version__

if TYPE_CHECKING:
    from textebm.interface import LatentEBM

__all__ = ["LatentEBM", "__version__"]


def __getattr__(name: str) -> object:
    """What is imported at its first use (PEP 562)."""
    if name == "LatentEBM":
        from textebm.interface import LatentEBM

        return LatentEBM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
