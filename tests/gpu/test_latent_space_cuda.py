"""Latents on a CUDA device: their noise is drawn on the CPU, sentence by sentence, so they are those of the CPU."""

from pathlib import Path

import pytest
import torch

from textebm import generation, latent_space

pytestmark = pytest.mark.gpu

SENTENCES = ["the old dog sees a king", "no ship", "a red river fears the child", "every wolf loves the king again"]


def test_latents_are_those_of_the_cpu(saved_model: Path) -> None:
    on_cpu, tokenizer = generation.load(saved_model, "cpu")
    on_cuda, _ = generation.load(saved_model, "cuda")
    text = generation.encode_all(tokenizer, SENTENCES)
    known, found = (latent_space.posterior(model, text, seed=3) for model in (on_cpu, on_cuda))
    torch.testing.assert_close(found.samples, known.samples, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.log_likelihoods, known.log_likelihoods, rtol=1e-2, atol=1e-2)
