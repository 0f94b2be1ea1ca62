"""`textebm generate`, `reconstruct` and `interpolate`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textebm import options
from textebm.commands.terminal import load_model, parse, progress_bar, write, writing
from textebm.errors import UsageError

if TYPE_CHECKING:
    from textebm.model.decoding import Decoding


def generate(arguments: Sequence[str]) -> int:
    """`textebm generate`."""
    chosen = parse(options.Generate, "generate", arguments)
    if chosen.n < 1:
        raise UsageError(f"-n is {chosen.n}: it must be at least 1")
    if chosen.prior_steps is not None and chosen.prior_steps < 0:
        raise UsageError(f"--prior-steps is {chosen.prior_steps}: it must be 0 or more")
    from textebm import generation

    model, tokenizer = load_model(chosen)
    samples = generation.generate(
        model, tokenizer, chosen.n, chosen.seed, _decoding(chosen, model.config.longest), chosen.prior_steps
    )
    as_json = chosen.format == "jsonl"
    with progress_bar(chosen.n, "sentence") as bar:
        if chosen.output is not None:
            with writing(chosen.output):
                generation.write_samples(Path(chosen.output), samples, as_json, bar.update)
            return 0
        for sample in samples:
            print(generation.format_sample(sample, as_json))
            bar.update()
    return 0


def reconstruct(arguments: Sequence[str]) -> int:
    """`textebm reconstruct`."""
    chosen = parse(options.Reconstruct, "reconstruct", arguments)
    from textebm import generation
    from textebm.data.vocabulary import apply_policy
    from textebm.evaluation import bleu
    from textebm.lm_eval.corpus import read_sentences

    lines = list(read_sentences(Path(chosen.file), keep_blank=True))
    sentences = [line for line in lines if line]
    model, tokenizer = load_model(chosen)
    written = generation.reconstruct(model, tokenizer, sentences, chosen.seed, _decoding(chosen, model.config.longest))
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


def interpolate(arguments: Sequence[str]) -> int:
    """`textebm interpolate`."""
    chosen = parse(options.Interpolate, "interpolate", arguments)
    if chosen.points < 2:
        raise UsageError(f"--points is {chosen.points}: it must be at least 2, the two ends")
    from textebm import generation

    model, tokenizer = load_model(chosen)
    decoding = _decoding(chosen, model.config.longest)
    line = generation.interpolate(model, tokenizer, chosen.first, chosen.last, chosen.points, chosen.seed, decoding)
    for sample in line:
        print(sample.text)
    return 0


def _decoding(chosen: options.DecodingOptions, longest: int) -> "Decoding":
    from textebm.model.decoding import Decoding

    length = longest if chosen.max_length is None else chosen.max_length
    return Decoding(chosen.decoding, chosen.temperature, chosen.top_k, chosen.top_p, chosen.beam_size, length)
