"""What a run learns from, behind one door: text and images differ in here, and nowhere else in training.

The loop, the learner, chains and checkpoints know a `Material`. Which one it is, the kind of the generator says.
"""

from textebm.config import Config
from textebm.materials.base import Corpus, Material, Measured
from textebm.materials.images import ImageMaterial
from textebm.materials.text import TextMaterial

__all__ = ["MATERIALS", "Corpus", "ImageMaterial", "Material", "Measured", "TextMaterial", "material_of"]

MATERIALS: dict[str, type[Material]] = {"recurrent": TextMaterial, "convolutional": ImageMaterial}
"""Kind of generator -> what it learns from."""


def material_of(config: Config) -> type[Material]:
    """What a run with this configuration learns from."""
    return MATERIALS[config.generator.kind]
