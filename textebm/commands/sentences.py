"""What the commands of `textebm.commands.generation` do with a model of text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from textebm import options, processes
from textebm.commands.terminal import choose_device, ended_as_interrupted, progress_bar, refuse, write, writing
from textebm.errors import UsageError

if TYPE_CHECKING:
    from textebm.model.decoding import Decoding

OF_IMAGES = "is of images, and the model writes sentences"
SENTENCES = 10
"""Generated where no number is given."""


def generate(chosen: options.Generate, folder: Path) -> int:
    """Write sentences from the prior."""
    from textebm import generation

    if chosen.format in ("grid", "png"):
        raise UsageError(f"--format {chosen.format} is of images, and the model writes text: --format text or jsonl")
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    n, decoding = chosen.n or SENTENCES, chosen_decoding(chosen, model.config.longest)
    world = processes.world()
    samples = generation.generate(model, tokenizer, n, chosen.seed, decoding, chosen.prior_steps, world)
    if not world.first:
        generation.take_part(samples)
        return 0
    as_json = chosen.format == "jsonl"
    with progress_bar(n, "sentence") as bar:
        if chosen.output is not None:
            with writing(chosen.output), ended_as_interrupted():
                generation.write_samples(Path(chosen.output), samples, as_json, bar.update)
            return 0
        for sample in samples:
            print(generation.format_sample(sample, as_json))
            bar.update()
    return 0


def reconstruct(chosen: options.Reconstruct, folder: Path) -> int:
    """Write the sentences of a file again."""
    from textebm import generation
    from textebm.data.vocabulary import apply_policy
    from textebm.evaluation import bleu
    from textebm.lm_eval.corpus import read_sentences

    if chosen.file is None:
        raise UsageError("reconstruct wants a text file, one sentence a line")
    refuse(chosen, OF_IMAGES, "split", "n", "data", "data_dir", "grid", "pairs")
    lines = list(read_sentences(Path(chosen.file), keep_blank=True))
    sentences = [line for line in lines if line]
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    written = generation.reconstruct(
        model, tokenizer, sentences, chosen.seed, chosen_decoding(chosen, model.config.longest)
    )
    if chosen.format == "text":
        again = iter(written)
        write("\n".join(next(again) if line else "" for line in lines), chosen.output)  # line by line beside the file
        return 0
    pairs = [{"text": a, "reconstruction": b} for a, b in zip(sentences, written, strict=True)]
    as_read = list(apply_policy(tokenizer, sentences))  # a model of lower case is not blamed for the text's capitals
    score, signature = bleu(written, as_read)
    described = {"metric": "bleu", "score": score, "signature": signature, "sentences": pairs}
    write(json.dumps(described, ensure_ascii=False, indent=2), chosen.output)
    return 0


def interpolate(chosen: options.Interpolate, folder: Path) -> int:
    """Write the sentences between two."""
    from textebm import generation

    if chosen.first is None or chosen.last is None:
        raise UsageError(
            "interpolate wants two sentences, in quotation marks: where the line begins, and where it ends"
        )
    refuse(chosen, OF_IMAGES, "lines", "data", "data_dir")
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    decoding = chosen_decoding(chosen, model.config.longest)
    line = generation.interpolate(model, tokenizer, chosen.first, chosen.last, chosen.points, chosen.seed, decoding)
    write("\n".join(sample.text for sample in line), chosen.output)
    return 0


def chosen_decoding(chosen: options.DecodingOptions, longest: int) -> "Decoding":
    """How the options say that words are chosen; `longest` is the length of the longest training sentence."""
    from textebm.model.decoding import Decoding

    length = longest if chosen.max_length is None else chosen.max_length
    return Decoding(chosen.decoding, chosen.temperature, chosen.top_k, chosen.top_p, chosen.beam_size, length)
