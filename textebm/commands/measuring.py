"""`textebm fppl`, `rppl`, `evaluate`, `signature` and `compare`."""

import dataclasses
import errno
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textebm import options, processes
from textebm.commands.judges import JudgeView
from textebm.commands.terminal import (
    choose_device,
    describe_use,
    ended_as_interrupted,
    figure,
    find_corpus,
    model_folder,
    parse,
    progress_bar,
    require_file,
    require_text,
    say,
    write,
)
from textebm.errors import UsageError

if TYPE_CHECKING:
    from textebm.lm_eval.corpus import Corpus as TextCorpus
    from textebm.lm_eval.protocols import EvaluationProtocol
    from textebm.lm_eval.scores import Options as MeasuringOptions
    from textebm.lm_eval.scores import Score


def fppl(arguments: Sequence[str]) -> int:
    """`textebm fppl`."""
    return _measure("fppl", parse(options.Fppl, "fppl", arguments))


def rppl(arguments: Sequence[str]) -> int:
    """`textebm rppl`."""
    return _measure("rppl", parse(options.Rppl, "rppl", arguments))


def _measure(metric: Literal["fppl", "rppl"], chosen: options.PerplexityOptions) -> int:
    """FPPL or RPPL, with the real text that the model was trained on unless the options say otherwise."""
    from textebm import lm_eval

    _check_measuring(chosen, given=chosen.samples is not None)
    if chosen.samples is not None:
        require_file("--samples", chosen.samples)
    real = _real_text(chosen, chosen.samples is None)
    if metric == "rppl" and real.test is None:
        raise UsageError("rppl is the perplexity of real test text: name it with --reference")
    samples, settings = _generated(chosen, chosen.samples, real)
    if not processes.world().first:  # who has drawn its share; one process judges
        return 0
    generated = lm_eval.Corpus(samples, samples.name, keep_blank=True)
    if metric == "fppl":
        score = lm_eval.fppl(generated, real.train, reference=real.test, valid=real.valid, **settings)
    else:
        assert real.test is not None
        score = lm_eval.rppl(generated, real.test, real.train, valid=real.valid, **settings)
    if chosen.sentence_scores is not None:
        from textebm.lm_eval.kept import keep_scores

        keep_scores(Path(chosen.sentence_scores), score.signature, score.sentence_scores)
    _say_remarks(score)
    write(score.to_json() if chosen.format == "json" else _describe_score(score), chosen.output)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """`textebm evaluate`."""
    chosen = parse(options.Evaluate, "evaluate", arguments)
    if chosen.latent_sentences < 0:
        raise UsageError(f"--latent-sentences is {chosen.latent_sentences}: it must be 0 or more")
    from textebm import lm_eval

    _check_measuring(chosen, given=bool(chosen.samples))
    for path in chosen.samples:
        require_file("--samples", path)
    real = _real_text(chosen, not chosen.samples)
    if real.test is None:
        raise UsageError("evaluate measures beside real test text: name it with --reference")
    texts = {}
    for given in chosen.samples or (None,):
        file, settings = _generated(chosen, given, real)
        name = str(file) if file.name in texts else file.name
        texts[name] = lm_eval.Corpus(file, name, keep_blank=True)
    latents = {} if chosen.samples or chosen.latent_sentences == 0 else _use_of_latents(chosen, real)
    if not processes.world().first:  # who has drawn and scored its share; one process judges
        return 0
    report = lm_eval.evaluate(
        texts, real.test, real.train, valid=real.valid, limits=not chosen.no_limits, mauve=chosen.mauve, **settings
    )
    for remark in report.remarks:
        say(remark)
    if chosen.format == "json":
        found = report.as_dict()
        found["details"] |= {"latents": latents} if latents else {}
        write(json.dumps(found, ensure_ascii=False, indent=2, allow_nan=False), chosen.output)
        return 0
    described = [_describe_latents(latents, chosen.format)] if latents and chosen.format != "csv" else []
    write("\n\n".join([report.table(chosen.format), *described]), chosen.output)
    return 0


def _use_of_latents(chosen: options.Evaluate, real: "RealText") -> dict[str, Any]:
    """Whether the model uses z, on test sentences: likelihoods under posterior and prior samples, and `LatentUse`.

    Nothing of a plain language model, which has no z.
    """
    from textebm import evaluation, generation
    from textebm.data.text import encode

    assert real.folder is not None and real.test is not None  # sentences were drawn from it, and measured beside it
    model, tokenizer = generation.load(real.folder, choose_device(chosen.device))
    text = encode(real.test, tokenizer, max_length=None, overlong="cut")
    n, seed, world = chosen.latent_sentences, chosen.seed, processes.world()
    if not model.has_latent:
        return {}
    scored = evaluation.validate(model, text, seed, n, prior_steps=chosen.prior_steps, world=world)
    use = evaluation.latent_use(model, text, tokenizer, seed, n, log_normaliser=chosen.log_normaliser, world=world)
    likelihoods = {name: getattr(scored, name) for name in ("reconstruction_nll", "prior_nll", "nll_gap")}
    return {"text": "test", **likelihoods, **use.to_dict()}


def _describe_latents(latents: Mapping[str, Any], form: str) -> str:
    """Those figures for people."""
    mark = "- " if form == "markdown" else ""
    lines = [
        f"use of z, on {latents['latent_sentences']} test sentences: {describe_use(latents)}",
        f"NLL a sentence: {latents['reconstruction_nll']:.2f} nats under posterior samples, {latents['prior_nll']:.2f} "
        f"under prior samples, a gap of {latents['nll_gap']:.2f}",
    ]
    return "\n".join(mark + line for line in lines)


def signature(arguments: Sequence[str]) -> int:
    """`textebm signature`."""
    chosen = parse(options.ExplainSignature, "signature", arguments)
    from textebm.lm_eval import compare as comparing
    from textebm.lm_eval.signature import Signature

    if len(chosen.signatures) not in (1, 2):
        raise UsageError(f"one signature or two are wanted, in quotation marks; {len(chosen.signatures)} were given")
    found = [Signature.parse(text) for text in chosen.signatures]
    said = comparing.explanation(found[0]) if len(found) == 1 else comparing.verdict(found[0], found[1])
    print(json.dumps(said.facts, ensure_ascii=False, indent=2) if chosen.format == "json" else said.text)
    return 0


def compare(arguments: Sequence[str]) -> int:
    """`textebm compare`."""
    chosen = parse(options.Compare, "compare", arguments)
    from textebm.comparison import images, text
    from textebm.lm_eval import compare as comparing
    from textebm.lm_eval.published import render_published

    if chosen.published and not chosen.files:
        write(render_published(chosen.format), chosen.output)
        return 0
    if not chosen.files:
        raise UsageError("no file is given: name results of fppl, rppl, evaluate or experiment in JSON")
    if chosen.resamples < 1:
        raise UsageError(f"--resamples is {chosen.resamples}: it must be at least 1")
    for path in chosen.files:
        require_file("compare", path)
    comparison: comparing.Comparison | text.Systems | images.ImageSystems
    of_images = [path for path in map(Path, chosen.files) if images.is_image_run(path)]
    if of_images:
        if len(of_images) < len(chosen.files):
            raise UsageError("results on images and on text do not share a table: compare them apart")
        if chosen.published:
            raise UsageError("--published: no published figure of images was measured as these are: leave it out")
        runs = [images.read_image_run(path) for path in of_images]
        comparison = images.ImageSystems(runs, against=chosen.against)
    elif chosen.by_method or chosen.against:
        comparison = text.Systems(
            [text.read_run(Path(path)) for path in chosen.files],
            against=chosen.against,
            published=chosen.published,
            resamples=chosen.resamples,
        )
    else:
        comparison = comparing.compare_files([Path(path) for path in chosen.files], published=chosen.published)
    for warning in comparison.warnings:
        say(f"warning: {warning}")
    write(comparison.render(chosen.format), chosen.output)
    return 0


def _check_measuring(chosen: options.TextOptions, given: bool) -> None:
    """Refuse options that contradict one another, before anything is computed.

    Args:
        chosen: the options.
        given: whether samples are given, instead of drawn from a model.
    """
    from textebm.lm_eval.protocols import get_protocol

    get_protocol(chosen.protocol)
    if chosen.n is not None and (chosen.n < 1 or given):
        raise UsageError("-n is the number of sentences to draw: it must be at least 1, and does not go with --samples")
    if chosen.prior_steps is not None and (chosen.prior_steps < 0 or given):
        raise UsageError("--prior-steps is a chain's length, 0 or more, and does not go with --samples")
    described = {"--decoding": chosen.decoding, "--filtering": chosen.filtering, "--max-length": chosen.max_length}
    for name, value in described.items():
        if value is not None and not given:
            raise UsageError(f"{name} says what --samples are; without them, the protocol decides how they are drawn")
    if chosen.train is not None and chosen.data is not None:
        raise UsageError("--train and --data both name real text: give one of them")
    if chosen.train is None and (chosen.reference is not None or chosen.valid is not None):
        raise UsageError("--reference and --valid stand beside --train: with a corpus, its own splits are taken")
    for name, value in (("--train", chosen.train), ("--reference", chosen.reference), ("--valid", chosen.valid)):
        if value is not None:
            require_file(name, value)


@dataclasses.dataclass(frozen=True)
class RealText:
    """Real text, read anew at each pass; words outside the vocabulary are <unk>."""

    name: str
    train: "TextCorpus"
    test: "TextCorpus | None"
    valid: "TextCorpus | None"
    folder: Path | None  # of the model, where one is needed
    policy: str  # what was done to the text before anything else: `Config.text_policy`


def _real_text(chosen: options.TextOptions, drawing: bool) -> RealText:
    """The real text that the options name, or that the model was trained on, which is then found.

    Args:
        chosen: the options.
        drawing: whether samples will be drawn, so that there must be a model.
    """
    return real_text(
        chosen, model_folder(chosen) if drawing or (chosen.data is None and chosen.train is None) else None
    )


def real_text(chosen: options.TextOptions, folder: Path | None) -> RealText:
    """The real text that the options name.

    Args:
        chosen: the options.
        folder: of the model whose text it is by default, and whose vocabulary and text policy it is put into.

    Raises:
        UsageError: the model is one of images.
    """
    from textebm import checkpoint

    config = None if folder is None else checkpoint.read_run(folder)[0]
    if folder is not None and config is not None:
        require_text(config, folder)
    splits: dict[str, Callable[[], Iterable[str]]]
    if chosen.train is not None:
        name, splits = Path(chosen.train).name, _files_of(chosen)
    else:
        from textebm.data.registry import SPLITS

        data = chosen.data if config is None else chosen.data or config.data
        assert data is not None
        data_dir = chosen.data_dir or (None if config is None else config.data_dir)
        corpus = find_corpus(data, data_dir, chosen.text_field or (None if config is None else config.text_field))
        name, splits = corpus.name, {split: functools.partial(corpus.sentences, split) for split in SPLITS}
    limit = _as_the_model_writes(chosen.vocab_size, folder, splits["train"])
    from textebm.lm_eval.corpus import Corpus

    def text(split: str) -> "TextCorpus | None":
        return Corpus(lambda: map(limit, splits[split]()), split) if split in splits else None

    train = text("train")
    assert train is not None
    policy = "as-is" if config is None else config.text_policy
    return RealText(name, train, text("test"), text("valid"), folder, policy)


def _files_of(chosen: options.TextOptions) -> dict[str, Callable[[], Iterable[str]]]:
    """The splits that --train, --reference and --valid name."""
    from textebm.lm_eval.corpus import read_sentences

    named = {"train": chosen.train, "test": chosen.reference, "valid": chosen.valid}
    return {split: functools.partial(read_sentences, path) for split, path in named.items() if path is not None}


def _as_the_model_writes(
    vocab_size: int | None, folder: Path | None, train: Callable[[], Iterable[str]]
) -> Callable[[str], str]:
    """Puts text as the model would: under its text policy, with <unk> for words outside the vocabulary.

    The vocabulary is that of `vocab_size` words, else that of the model if it is one of words, else all words.
    """
    from textebm.data.vocabulary import apply_policy, build_tokenizer, is_word_level, load_tokenizer
    from textebm.lm_eval.corpus import Vocabulary

    of_model = None if folder is None else load_tokenizer(folder)

    def policy(sentence: str) -> str:
        return sentence if of_model is None else next(iter(apply_policy(of_model, [sentence])))

    if vocab_size is not None:
        words = build_tokenizer(map(policy, train()), vocab_size).get_vocab()
    elif of_model is not None and is_word_level(of_model):
        words = of_model.get_vocab()
    else:
        return policy
    vocabulary = Vocabulary(words)
    return lambda sentence: " ".join(vocabulary.map(policy(sentence).split())[0])


def _generated(chosen: options.TextOptions, given: str | None, real: RealText) -> tuple[Path, "MeasuringOptions"]:
    """The file of generated text, given or drawn, and what `textebm.lm_eval` takes by name."""
    from textebm.lm_eval.protocols import NOT_FILTERED, UNKNOWN_DECODING, get_protocol

    protocol = get_protocol(chosen.protocol)
    settings: MeasuringOptions = {
        "data": real.name,
        "text_policy": real.policy,
        "protocol": protocol.name,
        "lmplz": chosen.lmplz,
        "recipe": chosen.recipe,
        "judge_model": chosen.judge_model,
        "judge_epochs": chosen.judge_epochs,
        "resamples": chosen.resamples,
        "repeats": chosen.repeats,
        "seed": chosen.seed,
        "decoding": chosen.decoding or UNKNOWN_DECODING,
        "filtering": chosen.filtering or NOT_FILTERED,
        "max_length": chosen.max_length,
    }
    if protocol.judge != "ngram":
        settings |= {"device": str(choose_device(chosen.device)), "observe": JudgeView()}
    if given is not None:
        return Path(given), settings
    path, decoding, longest = _drawn(chosen, protocol, real)
    return path, settings | {"decoding": decoding, "max_length": longest}


def _drawn(chosen: options.TextOptions, protocol: "EvaluationProtocol", real: RealText) -> tuple[Path, str, int]:
    """Sentences drawn from a model as a protocol prescribes, drawn once and then kept.

    Returns:
        Their file, how they were decoded, and the longest sentence that could be drawn, in words.
    """
    from textebm import generation
    from textebm.data.vocabulary import is_word_level
    from textebm.lm_eval.protocols import HEADLINE_DECODING
    from textebm.model.decoding import Decoding

    folder = real.folder
    assert folder is not None  # `_real_text` was asked for it
    run = folder.parent.parent
    cache = run / "samples" if (run / "checkpoints").is_dir() else generation.cache_folder()
    n = protocol.sentences_wanted(sum(1 for _ in real.train)) if chosen.n is None else chosen.n
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    if protocol.max_length is not None and not is_word_level(tokenizer):
        raise UsageError(
            f"the protocol {protocol.name} has sentences of at most {protocol.max_length} words, and the model writes "
            "parts of words: write sentences with textebm generate, cut them to so many words, and name them with "
            "--samples"
        )
    longest = protocol.max_length or model.config.longest
    greedy = protocol.decoding == "greedy"
    decoding = Decoding("greedy", max_length=longest) if greedy else None
    world = processes.world()
    drawn = (folder, model, tokenizer, n, chosen.seed)
    with progress_bar(n, "sentence") as bar, ended_as_interrupted():
        how_drawn = (bar.update, decoding, chosen.prior_steps, world)
        try:
            path = generation.cached_samples(*drawn, cache, *how_drawn)
        except OSError as error:
            is_read_only = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            if not is_read_only or cache == generation.cache_folder() or world.count > 1:
                raise
            path = generation.cached_samples(*drawn, generation.cache_folder(), *how_drawn)
    say(f"samples: {path}")
    steps = generation.other_chain(model, chosen.prior_steps)
    how = ("greedy" if greedy else HEADLINE_DECODING) + ("" if steps is None else f"+prior-steps-{steps}")
    return path, how, longest


def _say_remarks(score: "Score") -> None:
    """Warnings, why a score is kept out of the main table, and the quirks of its protocol."""
    for warning in score.warnings:
        say(f"warning: {warning}")
    for reason in score.details["headline_reasons"]:
        if reason not in score.warnings:
            say(f"not for the main table: {reason}")
    for quirk in score.quirks:
        say(f"quirk of {score.details['protocol']['name']}: {quirk}")


def _describe_score(score: "Score") -> str:
    """A score for people."""
    details, real = score.details, score.details["real_row"]
    samples, text, repeats = details["samples"], details["real"], details["repeats"]
    lines = [
        f"{score.metric.upper()} {score.score:.2f}  (95 % interval {score.interval[0]:.2f} to {score.interval[1]:.2f})",
        *([] if real is None else [f"real text under the same judge: {real['perplexity']:.2f}"]),
        f"main table: {'yes' if details['headline'] else 'no'}; protocol {details['protocol']['name']}",
        *([f"mean of {repeats['runs']} judges, sd {repeats['sd']:.2f}"] if repeats["runs"] > 1 else []),
        f"signature: {score.signature}",
        f"{'':16}{'samples':>12}{'real':>12}",
    ]
    for key in ("sentences", "mean_length", "unknown_rate", "duplicate_rate", "empty_rate", "copied_rate"):
        lines.append(f"{key:16}{figure(samples[key]):>12}{figure(text[key]):>12}")
    return "\n".join(lines)
