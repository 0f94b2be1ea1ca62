"""Settings that do nothing beside others, and why: so that nobody waits for what they asked for in vain."""

from collections.abc import Callable

from textebm.config import Config, flat
from textebm.model.inference import METHODS

CHAIN = ("steps", "step_size", "temperature", "annealing_start", "annealing_steps", "dropout_mask", "sampled_softmax")
TILT = ("width", "depth", "activation", "steps", "step_size", "temperature", "outputs", "spectral_norm", "persistent")
RECURRENT = ("cell", "embedding_dim", "hidden_dim", "z_to_state", "z_to_cell", "z_to_input", "dropout", "word_dropout")
TEXT = ("tokenizer", "vocab_size", "min_count", "unknown_words", "lowercase", "numbers", "max_length", "overlong")
"""Names of settings, the last part of each."""

Rule = tuple[tuple[str, ...], Callable[[Config], bool], str]
RULES: tuple[Rule, ...] = (
    (
        (*(f"inference.{name}" for name in CHAIN), "inference.preconditioner"),
        lambda c: not METHODS[c.inference.kind].has_chain,
        "inference.kind {0.inference.kind} has no posterior chain",
    ),
    (
        (*(f"prior.{name}" for name in TILT), "optimiser.energy_"),
        lambda c: not c.prior.is_tilted,
        "prior.kind {0.prior.kind} has no energy",
    ),
    (("prior.restart",), lambda c: c.prior.persistent == 0, "prior.persistent is 0"),
    (("prior.stage",), lambda c: c.prior.kind != "ratio", "prior.kind is {0.prior.kind}, not ratio"),
    (
        ("encoder.", "optimiser.encoder_"),
        lambda c: not METHODS[c.inference.kind].has_encoder,
        "inference.kind {0.inference.kind} has no encoder",
    ),
    (
        ("sampler.", "optimiser.sampler_"),
        lambda c: not METHODS[c.inference.kind].has_sampler,
        "inference.kind {0.inference.kind} has no learned sampler",
    ),
    (
        ("generator.convolution.", "images."),
        lambda c: c.generator.kind == "recurrent",
        "the model is one of text",
    ),
    (
        (*(f"generator.{name}" for name in RECURRENT), "generator.init_range", "text_field", *TEXT, "batch_tokens"),
        lambda c: c.generator.kind == "convolutional",
        "the model is one of images",
    ),
)
"""Settings, or what their names begin with; when they do nothing; and why."""


def idle_settings(config: Config, given: Config) -> dict[str, str]:
    """Settings that somebody changed, and that do nothing.

    Args:
        config: the settings of a run.
        given: what they were before somebody changed some of them.

    Returns:
        The name of each, and why it does nothing.
    """
    before = flat(given)
    changed = [name for name, value in flat(config).items() if value != before[name]]
    return {
        name: why.format(config)
        for beginnings, is_idle, why in RULES
        for name in changed
        if name.startswith(beginnings) and is_idle(config)
    }
