"""textebm: generation of text and images with a learned latent prior (latent space energy-based models).

`textebm.model` holds the mathematics, `textebm.training` the loop, `textebm.data` where sentences and images
come from, and `textebm.lm_eval` the measuring of text. Nothing heavy is imported until it is used.
"""

from textebm._version import __version__

__all__ = ["__version__"]
