"""The command line. Heavy imports stand inside the commands, so that help comes at once.

Only this file prints: results on standard output, progress and remarks on standard error.
"""

import dataclasses
import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro

from textebm import options
from textebm._version import __version__
from textebm.config import Config, load_config, preset_names, to_dict
from textebm.errors import CheckpointError, TextebmError, UsageError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from tqdm import tqdm

    from textebm.data.registry import Corpus
    from textebm.lm_eval.calibration import RealRow
    from textebm.lm_eval.corpus import Corpus as TextCorpus
    from textebm.lm_eval.protocols import EvaluationProtocol
    from textebm.lm_eval.scores import Options as MeasuringOptions
    from textebm.lm_eval.scores import Score
    from textebm.model.decoding import Decoding
    from textebm.model.latent_ebm import LatentEBM

T = TypeVar("T")

HELP = f"""usage: textebm COMMAND [OPTIONS]

Text generation with a learned latent prior. textebm {__version__}

commands:
  train        train a model on a corpus
  generate     write sentences with a trained model
  reconstruct  infer z for each line of a file and write the sentence again
  interpolate  write sentences between two sentences
  fppl         forward perplexity: generated text under a language model of real text
  rppl         reverse perplexity: real text under a language model of generated text
  evaluate     both, and what perplexity does not see, of one text or several, in one table
  calibrate    what real text scores under each judge, beside known figures
  signature    explain a score's signature, or say whether two scores compare
  compare      put scores into tables, those that compare side by side
  data         list corpora, show one, download it, check what is on this machine
  plot         draw a run's learning curves
  env          say what textebm finds on this machine

examples:
  textebm train --data ptb                      # the paper's model on Penn Treebank
  textebm generate -n 1000                      # from the newest run
  textebm fppl                                  # forward and
  textebm rppl                                  # reverse perplexity of the newest run
  textebm evaluate --samples a.txt b.txt --data ptb
  textebm train --data my.txt --max-minutes 30  # a corpus of your own

textebm COMMAND --help tells more; --debug shows the traceback of an error; --version prints the version.
"""


OWN_CORPUS_PRESET = "ptb-small"
"""What `train --data FILE` starts from: the settings that were tried most, at a size that a CPU bears."""


def say(text: str) -> None:
    """A remark for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def parse(kind: type[T], command: str, arguments: Sequence[str], default: T | None = None) -> T:
    """The options of a command; a wrong one ends the program with exit code 2."""
    settings: dict[str, Any] = {} if default is None else {"default": default}
    chosen: T = tyro.cli(
        kind, prog=f"textebm {command}", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,), **settings
    )
    return chosen


# ---- training


def preset_of(arguments: Sequence[str]) -> tuple[Config, str]:
    """The settings that a command line starts from, and where they come from.

    `--config` names them; else they are the preset named like `--data`, or the one for a corpus of one's own.
    """
    named = {"--config": "", "--data": ""}
    for index, argument in enumerate(arguments):
        key, _, value = argument.partition("=")
        if key in named:
            named[key] = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
    data, config = named["--data"], named["--config"]
    if config:
        return load_config(config), config
    name = (data or "demo") if data in (*preset_names(), "") else OWN_CORPUS_PRESET
    return load_config(name), f"preset {name}"


def train(arguments: Sequence[str]) -> int:
    """`textebm train`."""
    settings, origin = preset_of(arguments)
    chosen = parse(options.Train, "train", arguments, options.Train(settings=settings))
    if chosen.print_config:
        print(json.dumps(to_dict(chosen.settings), indent=2))
        return 0
    from textebm import training
    from textebm.data.registry import settled

    given = chosen.settings.data
    data = settled(given, chosen.settings.text_field)  # standard input can be read but once, so before all else
    chosen = _with_data(chosen, data)
    run_dir, resume = _run_folder(chosen)
    if resume:  # the run's own settings; options that say otherwise are then refused, but for --data-dir
        own = load_config(str(run_dir / "config.json"))
        chosen = parse(options.Train, "train", arguments, options.Train(settings=own))
        chosen = _with_data(chosen, data) if chosen.settings.data == given else chosen
    config = chosen.settings
    corpus = find_corpus(config.data, config.data_dir, config.text_field)
    device = choose_device(chosen.device)
    say(f"settings: {run_dir / 'config.json' if resume else origin}; run folder: {run_dir}")
    with _interrupts() as interrupted, _TrainingView() as view:
        limits = training.Limits(
            chosen.max_epochs, chosen.max_steps, chosen.max_minutes, chosen.checkpoint_every, lambda: interrupted() > 0
        )
        training.train(config, corpus, run_dir, limits, device, resume, view)
    if interrupted():
        say(f"interrupted; everything is saved. Go on with: textebm train --resume {run_dir}")
        return 130
    say(f"done: {run_dir}. Next: textebm generate -n 10, textebm fppl, textebm rppl, textebm plot")
    return 0


def _with_data(chosen: options.Train, data: str) -> options.Train:
    return dataclasses.replace(chosen, settings=dataclasses.replace(chosen.settings, data=data))


def _run_folder(chosen: options.Train) -> tuple[Path, bool]:
    """The run folder, and whether there is a run in it to go on with."""
    from textebm.data.registry import short_name

    if chosen.resume not in (None, "auto"):
        folder = Path(str(chosen.resume))
        if not (folder / "checkpoints" / "last.json").exists():
            raise CheckpointError(f"--resume {folder}: there is no checkpoint to go on from")
        return folder, True
    if chosen.run_dir is not None:
        folder = Path(chosen.run_dir)
        return folder, chosen.resume == "auto" and (folder / "checkpoints" / "last.json").exists()
    name = short_name(chosen.settings.data)
    if chosen.resume == "auto":
        of_this_data = re.compile(re.escape(name) + r"-\d{8}-\d{6}")
        found = [p for p in Path("runs").glob("*/checkpoints/last.json") if of_this_data.fullmatch(p.parts[-3])]
        if found:
            return max(found, key=lambda p: p.stat().st_mtime).parent.parent, True
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", False


@contextmanager
def _interrupts() -> Iterator[Callable[[], int]]:
    """Count SIGINT and SIGTERM instead of dying of them; a second one is an ordinary interrupt again."""
    count = 0

    def handle(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        say("stopping after this step (once more to stop at once, without saving) ...")

    before = {which: signal.signal(which, handle) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


class _TrainingView:
    """Shows a run: a progress bar on a terminal, a few lines a validation anywhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.prepared: tqdm[Any] | None = None
        self.preparing = ""
        self.tokens, self.since = 0, time.monotonic()

    def __enter__(self) -> "_TrainingView":
        return self

    def __exit__(self, *ignored: object) -> None:
        self._close_prepared()
        if self.bar is not None:
            self.bar.close()

    def prepare(self, what: str, sentences: int) -> None:
        if self.prepared is None or self.preparing != what:
            self._close_prepared()
            self.preparing = what
            self.prepared = progress_bar(None, " sentences", what=what)
        self.prepared.update(sentences)

    def _close_prepared(self) -> None:
        if self.prepared is not None:
            self.prepared.close()

    def begin(self, steps: int, done: int) -> None:
        self._close_prepared()
        self.bar = progress_bar(steps, "step", initial=done)

    def step(self, tokens: int) -> None:
        assert self.bar is not None
        self.tokens += tokens
        self.bar.update()

    def record(self, line: dict[str, Any]) -> None:
        if line["kind"] == "train" and self.bar is not None:
            now = time.monotonic()
            speed, self.tokens, self.since = self.tokens / (now - self.since), 0, now
            self.bar.set_postfix_str(f"nll {-line['log_prob']:.1f}, {speed:,.0f} tokens/s")
        elif line["kind"] in ("start", "resume"):
            say(_describe_data(line["data"], line["device"]))
            if line["annealing_steps"] >= line["last_step"]:
                say(
                    f"note: this run ends at step {line['last_step']}, before the chain has its full noise (at "
                    f"step {line['annealing_steps']}); --inference.annealing-steps shortens that"
                )
        elif line["kind"] == "valid":
            self.write(_describe_validation(line))
            self.tokens, self.since = 0, time.monotonic()

    def write(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        say(text)


def _describe_data(data: dict[str, Any], device: str) -> str:
    units = "entries (byte pairs)" if data["tokenizer"] == "bpe" else "entries"
    covered = f", covers {1 - data['train']['unknown_rate']:.2%} of the training words" * (data["tokenizer"] == "word")
    lines = [f"{data['name']}: vocabulary of {data['vocabulary']:,} {units}{covered}; on {device}"]
    for split in ("train", "valid", "test"):
        report = data[split]
        lost = {
            "dropped as too long": report["dropped"],
            "cut as too long": report["cut"],
            "dropped for an unknown word": report["dropped_unknown"],
            "blank lines left out": report["blank_lines"],
        }
        said = "".join(f", {count:,} {what}" for what, count in lost.items() if count)
        lines.append(
            f"  {split}: {report['sentences']:,} sentences, {report['words']:,} words, "
            f"{report['unknown_rate']:.2%} <unk>{said}"
        )
    return "\n".join(lines)


def _describe_validation(line: dict[str, Any]) -> str:
    units = f", active units {line['active_units']}" if "active_units" in line else ""
    head = (
        f"epoch {line['epoch']:.2f}, step {line['step']}, {line['seconds'] / 60:.1f} min: valid perplexity "
        f"{line['reconstruction_perplexity']:.1f} reconstructing, {line['prior_perplexity']:.1f} under prior samples, "
        f"{line['gaussian_perplexity']:.1f} under Gaussian samples; energy {line['posterior_energy']:.2f} posterior, "
        f"{line['prior_energy']:.2f} prior{units}{' (best so far)' if line['best'] else ''}"
    )
    return "\n".join([head, *(f"  | {sample}" for sample in line["samples"])])


def progress_bar(total: int | None, unit: str, initial: int = 0, what: str | None = None) -> "tqdm[Any]":
    """A progress bar on standard error, silent when that is not a terminal; without a total it goes when it is done."""
    from tqdm import tqdm

    quiet, leave = not sys.stderr.isatty(), total is not None
    return tqdm(desc=what, total=total, initial=initial, unit=unit, leave=leave, disable=quiet, dynamic_ncols=True)


# ---- generation


def generate(arguments: Sequence[str]) -> int:
    """`textebm generate`."""
    chosen = parse(options.Generate, "generate", arguments)
    if chosen.n < 1:
        raise UsageError(f"-n is {chosen.n}: it must be at least 1")
    if chosen.prior_steps is not None and chosen.prior_steps < 0:
        raise UsageError(f"--prior-steps is {chosen.prior_steps}: it must be 0 or more")
    from textebm import generation

    model, tokenizer = _load(chosen)
    samples = generation.generate(
        model, tokenizer, chosen.n, chosen.seed, _decoding(chosen, model.config.longest), chosen.prior_steps
    )
    as_json = chosen.format == "jsonl"
    with progress_bar(chosen.n, "sentence") as bar:
        if chosen.output is not None:
            with _writing(chosen.output):
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
    from textebm.lm_eval.corpus import read_sentences

    lines = list(read_sentences(Path(chosen.file), keep_blank=True))
    sentences = [line for line in lines if line]
    model, tokenizer = _load(chosen)
    written = generation.reconstruct(model, tokenizer, sentences, chosen.seed, _decoding(chosen, model.config.longest))
    if chosen.format == "text":
        again = iter(written)
        _write("\n".join(next(again) if line else "" for line in lines), chosen.output)  # line by line beside the file
        return 0
    pairs = [{"text": a, "reconstruction": b} for a, b in zip(sentences, written, strict=True)]
    as_read = list(apply_policy(tokenizer, sentences))  # a model of lower case is not blamed for the text's capitals
    _write(json.dumps({**_bleu(written, as_read), "sentences": pairs}, ensure_ascii=False, indent=2), chosen.output)
    return 0


def _bleu(written: list[str], sentences: list[str]) -> dict[str, Any]:
    """Corpus BLEU of reconstructions, with sacrebleu's signature; the text is tokenised already."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UsageError("--format json needs sacrebleu for the BLEU score: pip install 'textebm[bleu]'") from None
    metric = BLEU(tokenize="none", force=True)
    score = metric.corpus_score(written, [sentences])
    return {"metric": "bleu", "score": score.score, "signature": str(metric.get_signature())}


def interpolate(arguments: Sequence[str]) -> int:
    """`textebm interpolate`."""
    chosen = parse(options.Interpolate, "interpolate", arguments)
    if chosen.points < 2:
        raise UsageError(f"--points is {chosen.points}: it must be at least 2, the two ends")
    from textebm import generation

    model, tokenizer = _load(chosen)
    decoding = _decoding(chosen, model.config.longest)
    line = generation.interpolate(model, tokenizer, chosen.first, chosen.last, chosen.points, chosen.seed, decoding)
    for sample in line:
        print(sample.text)
    return 0


def _decoding(chosen: options.DecodingOptions, longest: int) -> "Decoding":
    from textebm.model.decoding import Decoding

    length = longest if chosen.max_length is None else chosen.max_length
    return Decoding(chosen.decoding, chosen.temperature, chosen.top_k, chosen.top_p, chosen.beam_size, length)


def _write(text: str, output: str | None) -> None:
    """Results to standard output, or to exactly the file named."""
    if output is None:
        print(text)
        return
    with _writing(output):
        Path(output).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _writing(output: str) -> Iterator[None]:
    """Say which file it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror}") from None


def _find(chosen: options.ModelOptions) -> Path:
    """The model folder that the options name; says which it is."""
    from textebm import checkpoint

    folder, description = checkpoint.find_model(chosen.model)
    say(f"model: {description}")
    return folder


def _load(chosen: options.ModelOptions) -> tuple["LatentEBM", "Tokenizer"]:
    """The model that the options name, and its tokeniser."""
    from textebm import generation

    folder = _find(chosen)
    return generation.load(folder, choose_device(chosen.device))


# ---- perplexity


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
        _require_file("--samples", chosen.samples)
    real = _real_text(chosen, chosen.samples is None)
    if metric == "rppl" and real.test is None:
        raise UsageError("rppl is the perplexity of real test text: name it with --reference")
    samples, settings = _generated(chosen, chosen.samples, real)
    generated = lm_eval.Corpus(samples, samples.name, keep_blank=True)
    if metric == "fppl":
        score = lm_eval.fppl(generated, real.train, reference=real.test, valid=real.valid, **settings)
    else:
        assert real.test is not None
        score = lm_eval.rppl(generated, real.test, real.train, valid=real.valid, **settings)
    _say_remarks(score)
    _write(score.to_json() if chosen.format == "json" else _describe_score(score), chosen.output)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """`textebm evaluate`."""
    chosen = parse(options.Evaluate, "evaluate", arguments)
    from textebm import lm_eval

    _check_measuring(chosen, given=bool(chosen.samples))
    for path in chosen.samples:
        _require_file("--samples", path)
    real = _real_text(chosen, not chosen.samples)
    if real.test is None:
        raise UsageError("evaluate measures beside real test text: name it with --reference")
    texts = {}
    for given in chosen.samples or (None,):
        file, settings = _generated(chosen, given, real)
        name = str(file) if file.name in texts else file.name
        texts[name] = lm_eval.Corpus(file, name, keep_blank=True)
    report = lm_eval.evaluate(
        texts, real.test, real.train, valid=real.valid, limits=not chosen.no_limits, mauve=chosen.mauve, **settings
    )
    for remark in report.remarks:
        say(remark)
    _write(report.to_json() if chosen.format == "json" else report.table(chosen.format), chosen.output)
    return 0


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
    from textebm.lm_eval import compare as comparing

    if not chosen.files:
        raise UsageError("no file is given: name results of fppl, rppl or evaluate in JSON")
    for path in chosen.files:
        _require_file("compare", path)
    comparison = comparing.compare_files([Path(path) for path in chosen.files], published=chosen.published)
    for warning in comparison.warnings:
        say(f"warning: {warning}")
    _write(comparison.render(chosen.format), chosen.output)
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
            _require_file(name, value)


def _require_file(option: str, name: str) -> None:
    path = Path(name)
    if path.is_file():
        return
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder, where a text file is wanted")
    if path.exists():
        raise UsageError(f"{option}: {path} is no regular file, and it is read several times; write it to one first")
    raise UsageError(f"{option}: {path} does not exist")


@dataclasses.dataclass(frozen=True)
class _RealText:
    """Real text, read anew at each pass; words outside the vocabulary are <unk>."""

    name: str
    train: "TextCorpus"
    test: "TextCorpus | None"
    valid: "TextCorpus | None"
    folder: Path | None  # of the model, where one is needed
    policy: str  # what was done to the text before anything else: `Config.text_policy`


def _real_text(chosen: options.TextOptions, drawing: bool) -> _RealText:
    """The real text that the options name.

    Args:
        chosen: the options.
        drawing: whether samples will be drawn, so that there must be a model.
    """
    from textebm import checkpoint

    folder = _find(chosen) if drawing or (chosen.data is None and chosen.train is None) else None
    config = None if folder is None else checkpoint.read_run(folder)[0]
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
    return _RealText(name, train, text("test"), text("valid"), folder, policy)


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


def _generated(chosen: options.TextOptions, given: str | None, real: _RealText) -> tuple[Path, "MeasuringOptions"]:
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
        settings |= {"device": str(choose_device(chosen.device)), "observe": _JudgeView()}
    if given is not None:
        return Path(given), settings
    path, decoding, longest = _drawn(chosen, protocol, real)
    return path, settings | {"decoding": decoding, "max_length": longest}


def _drawn(chosen: options.TextOptions, protocol: "EvaluationProtocol", real: _RealText) -> tuple[Path, str, int]:
    """Sentences drawn from a model as a protocol prescribes, drawn once and then kept.

    Returns:
        Their file, how they were decoded, and the longest sentence that could be drawn, in words.
    """
    from textebm import generation
    from textebm.lm_eval.protocols import HEADLINE_DECODING
    from textebm.model.decoding import Decoding

    folder = real.folder
    assert folder is not None  # `_real_text` was asked for it
    run = folder.parent.parent
    cache = run / "samples" if (run / "checkpoints").is_dir() else generation.cache_folder()
    n = protocol.sentences_wanted(sum(1 for _ in real.train)) if chosen.n is None else chosen.n
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    longest = protocol.max_length or model.config.longest
    greedy = protocol.decoding == "greedy"
    decoding = Decoding("greedy", max_length=longest) if greedy else None
    with progress_bar(n, "sentence") as bar:
        path = generation.cached_samples(folder, model, tokenizer, n, chosen.seed, cache, bar.update, decoding)
    say(f"samples: {path}")
    return path, "greedy" if greedy else HEADLINE_DECODING, longest


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
        lines.append(f"{key:16}{_figure(samples[key]):>12}{_figure(text[key]):>12}")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    """A count, a rate or a mean in few characters."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


# ---- calibration


def calibrate(arguments: Sequence[str]) -> int:
    """`textebm calibrate`."""
    chosen = parse(options.Calibrate, "calibrate", arguments)
    from textebm import hardware
    from textebm.data.registry import SPLITS
    from textebm.lm_eval import calibration
    from textebm.lm_eval.corpus import Corpus as Text
    from textebm.lm_eval.recipes import get_recipe

    recipe = None if chosen.recipe is None else get_recipe(chosen.recipe)
    corpus = find_corpus(chosen.data, chosen.data_dir, None)
    train, valid, test = (Text(corpus.sentences(split), split) for split in SPLITS)
    names = calibration.JUDGES if chosen.judge == "all" else (chosen.judge,)
    device = str(choose_device(chosen.device)) if calibration.LSTM in names else "cpu"
    started, commit = time.monotonic(), hardware.commit()
    with _JudgeView() as view:
        settings = calibration.JudgeOptions(
            recipe,
            chosen.seed,
            device,
            chosen.precision,
            _judge_folder(),
            view,
            chosen.epochs,
            chosen.max_minutes,
            chosen.lmplz,
        )
        rows = []
        for row in calibration.calibrate(train, valid, test, data=corpus.name, judges=names, options=settings):
            view.close()
            say(_describe_real_row(row))
            rows.append(row)
    if chosen.format == "text":
        _write("\n".join(map(_describe_real_row, rows)), chosen.output)
        return 0
    result = _calibration_result(chosen, arguments, rows, commit, time.monotonic() - started)
    _write(json.dumps(result, indent=2), chosen.output)
    return 0


def _judge_folder() -> Path:
    from textebm.lm_eval.neural import judge_folder

    return judge_folder()


def _calibration_result(
    chosen: options.Calibrate, arguments: Sequence[str], rows: "list[RealRow]", commit: str | None, seconds: float
) -> dict[str, Any]:
    """The first judge's score, every judge's row, and what it was measured on."""
    from textebm import hardware

    first = rows[0].as_dict()
    return {
        **{key: first[key] for key in ("metric", "score", "interval", "signature")},
        "command": f"textebm calibrate {_without(arguments, '--data-dir', '--output', '--lmplz')}",
        "commit": commit,
        "seed": chosen.seed,
        "hardware": hardware.hardware_class(chosen.device if chosen.device != "auto" else "cpu"),
        "versions": hardware.versions(),
        "minutes": round(seconds / 60, 1),
        "details": {"judges": {row.judge: row.as_dict() for row in rows}},
    }


def _without(arguments: Sequence[str], *paths: str) -> str:
    """The arguments but for those that name places on this machine."""
    import shlex

    kept = []
    words = iter(arguments)
    for word in words:
        if word in paths:
            next(words, None)
        elif word.split("=")[0] not in paths:
            kept.append(word)
    return shlex.join(kept)


def _describe_real_row(row: "RealRow") -> str:
    """A real row for people."""
    known = row.details["known"]
    if known["perplexity"] is None:
        beside = known["why"]
    else:
        beside = f"known: {known['perplexity']} ({known['source']}), {known['difference']:+.2%}"
    low, high = row.interval
    return (
        f"{row.judge}: real text {row.score:.2f}  (95 % interval {low:.2f} to {high:.2f}); {beside}\n  {row.signature}"
    )


class _JudgeView:
    """Shows the training of an LSTM judge: a progress bar on a terminal, a line an epoch anywhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.tokens = 0

    def __enter__(self) -> "_JudgeView":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind == "step":
            if self.bar is None:
                self.bar = progress_bar(self.tokens, "token")
            self.bar.update(event["tokens"])
            return
        self.close()
        if kind in ("start", "resume"):
            self.tokens = event["tokens"]
        if line := _describe_judge_event(event):
            say(line)


def _describe_judge_event(event: Mapping[str, Any]) -> str | None:
    """A line for people, where there is something to say."""
    kind = event["kind"]
    if kind in ("start", "resume"):
        done = f", {event['epochs']} epochs done" if kind == "resume" else ""
        return (
            f"LSTM judge: {event['recipe']}, {event['sentences']:,} sentences, {event['tokens']:,} tokens, "
            f"{event['held_out']:,} sentences held out, {event['precision']} on {event['device']}{done}"
        )
    if kind == "epoch":
        return (
            f"  epoch {event['epoch']}: train perplexity {event['train_perplexity']:.2f}, valid "
            f"{event['valid_perplexity']:.2f}{' (best so far)' if event['best'] else ''}, rate {event['lr']:g}, "
            f"{event['seconds']:.0f} s, {event['tokens_per_second']:,.0f} tokens/s"
        )
    if kind == "done" and event["ended"] == "cut":
        return f"  ended early after {event['epochs']} epochs; the same command goes on with it"
    if kind == "cached":
        return f"LSTM judge: trained before ({event['epochs']} epochs)"
    if kind == "damaged":
        return f"warning: the judge kept in {event['folder']} is damaged and is trained again: {event['reason']}"
    if kind == "waiting":
        return f"waiting for another process that trains the same judge ({event['folder']})"
    return None


# ---- corpora


def find_corpus(data: str, data_dir: str | None, text_field: str | None) -> "Corpus":
    """The corpus that the options mean; says when it has to be downloaded, and what is odd about it."""
    from textebm.data import registry

    if data in registry.card_names():
        card = registry.load_card(data)
        if card.download and registry.locate(card, data_dir) is None:
            say(f"downloading {card}. Licence: {card.licence}")
    corpus = registry.resolve(data, data_dir, text_field)
    for warning in corpus.warnings():
        say(f"warning: {warning}")
    return corpus


def data(arguments: Sequence[str]) -> int:
    """`textebm data`."""
    chosen = parse(options.Data, "data", arguments)
    from textebm.data import catalogue

    name = chosen.name
    if chosen.action == "list":
        if name is not None:
            raise UsageError(f"data list takes no name; textebm data show {name} shows one corpus")
        _show(chosen, catalogue.listing(chosen.data_dir), _describe_corpora)
        return 0
    if name is None:
        raise UsageError(
            f"data {chosen.action} needs the name of a corpus; textebm data list lists those that have one"
        )
    if chosen.action == "fetch":
        _show(chosen, catalogue.fetch(name), _describe_fetched)
        return 0
    if chosen.action == "show":
        found = catalogue.describe(name, chosen.data_dir, chosen.text_field)
        _show(chosen, found, _describe_corpus)
        return 0
    found = catalogue.check(name, chosen.data_dir, chosen.text_field)
    _show(chosen, found, _describe_check)
    return 0 if found["ok"] else 1


def _show(chosen: options.Data, found: T, in_words: Callable[[T], str]) -> None:
    """Print what was found, for people or as JSON; warnings go to standard error."""
    for warning in found.get("warnings", ()) if isinstance(found, dict) else ():
        say(f"warning: {warning}")
    print(in_words(found) if chosen.format == "text" else json.dumps(found, indent=2, ensure_ascii=False))


def _describe_corpora(entries: list[dict[str, Any]]) -> str:
    lines = []
    for entry in entries:
        counts = " / ".join(f"{count:,}" for count in entry["sentences"].values())
        lines += [
            f"{entry['name']:6} {entry['title']}: {counts} sentences (train / valid / test)",
            f"       {_where(entry)}",
            f"       licence: {entry['licence']}",
        ]
    return "\n".join(lines)


def _where(entry: dict[str, Any]) -> str:
    """Where a named corpus is on this machine, or how it gets there."""
    if entry["problem"]:
        return str(entry["problem"])
    if entry["ships"]:
        return "ships with textebm"
    if entry["found"]:
        return f"here: {entry['found']}"
    fetched = "downloaded when it is first used, or with" if entry["download"] else "how to get it says"
    return f"not here; {fetched} textebm data {'fetch' if entry['download'] else 'show'} {entry['name']}"


def _describe_corpus(found: dict[str, Any]) -> str:
    """A corpus for people: its card if it has one, its columns if it has some, its splits."""
    lines = [found["name"] + (f": {found['title']}" if "title" in found else "")]
    if "title" in found:
        told = ("description", "licence", "source", "notes", "unknown")
        lines += [f"{key}: {found[key]}" for key in told if found[key]]
        lines.append(f"where: {_where(found)}")
    if "columns" in found:
        lines.append(f"kind: {found['kind']}")
        lines.append("columns: " + ", ".join(f"{column} ({kind})" for column, kind in found["columns"].items()))
        lines.append("rows: " + ", ".join(f"{split} {count:,}" for split, count in found["rows"].items()))
    if found.get("problem") and "title" not in found:
        lines.append(f"as text: {found['problem']}")
    lines += [f"{split}: {_describe_split(values)}" for split, values in found.get("splits", {}).items()]
    return "\n".join(lines)


def _describe_split(values: dict[str, Any]) -> str:
    place = values.get("source") or values.get("file")
    parts = [f"{values['sentences']:,} sentences, {values['words']:,} words"] if "sentences" in values else []
    parts += [f"longest {values['longest']:,} words"] if "longest" in values else []
    parts += [f"{values['blank_lines']:,} blank lines"] if values.get("blank_lines") else []
    if place:
        parts.append(f"{'held out of' if values.get('held_out') else 'in'} {place}")
    elif values.get("url"):
        parts.append(f"published at {values['url']}")
    return ", ".join(parts)


def _describe_fetched(found: dict[str, Any]) -> str:
    """What a download brought."""
    lines = [
        f"{split}: {'downloaded' if values['downloaded'] else 'was there'}, sum as published: {values['file']}"
        for split, values in found["splits"].items()
    ]
    return "\n".join([*lines, f"licence: {found['licence']}"])


def _describe_check(found: dict[str, Any]) -> str:
    """The result of a check, a line a split, and a line a problem."""
    lines = []
    for split, values in found["splits"].items():
        result = "ok" if values["ok"] else "differs" if "sha256" in values else "unreadable"
        lines.append(f"{split}: {result}, {_describe_split(values)}")
        lines += [f"  {problem}" for problem in values["problems"]]
    return "\n".join(lines)


# ---- others


def plot(arguments: Sequence[str]) -> int:
    """`textebm plot`."""
    chosen = parse(options.Plot, "plot", arguments)
    from textebm import checkpoint, plots

    run_dir = Path(chosen.run) if chosen.run is not None else checkpoint.newest_run()
    output = Path(chosen.output) if chosen.output is not None else run_dir / "curves.png"
    plots.learning_curves(run_dir, output)
    print(output)
    return 0


def env(arguments: Sequence[str]) -> int:
    """`textebm env`."""
    parse(options.Env, "env", arguments)
    from importlib.util import find_spec

    import torch

    from textebm import hardware
    from textebm.lm_eval import ngram

    for package, number in hardware.versions().items():
        print(f"{package} {number or 'not installed'}")
    threads, gpus = torch.get_num_threads(), torch.cuda.device_count()
    print(f"CPU: {hardware.hardware_class()}, {threads} threads in torch")
    print("GPU: " + (", ".join(torch.cuda.get_device_name(i) for i in range(gpus)) if gpus else "none found"))
    kenlm = find_spec("kenlm") is not None
    print(f"n-gram judge: estimated by {ngram.find_lmplz() or 'the built-in estimator (no lmplz was found)'},")
    print(f"              queried by {'the kenlm module' if kenlm else 'the built-in reader (no kenlm module)'}")
    return 0


def choose_device(name: str) -> "torch.device":
    """The device that `--device` means; says what `auto` chose and why.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            say(f"device: cuda:0 ({torch.cuda.get_device_name(0)})")
            return torch.device("cuda:0")
        say("device: cpu (no CUDA device was found)")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # torch's own list of backends helps nobody
        raise UsageError(f"--device {name} cannot be used here: {reason}") from None
    return device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or input, 3 diverged, 130 interrupted, 141 nobody reads on.
    """
    # Spinning OpenMP threads slow recurrent networks down many times over as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"textebm {__version__}")
        return 0
    try:
        code = _command(words[0])(words[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output (head, less) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (TextebmError, OSError) as error:  # OSError: a full disk, a file that may not be read
        if debug:
            raise
        say(f"textebm: {error}")
        return error.exit_code if isinstance(error, TextebmError) else 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _command(name: str) -> Callable[[Sequence[str]], int]:
    known = (
        *(train, generate, reconstruct, interpolate),
        *(fppl, rppl, evaluate, calibrate, signature, compare, data, plot, env),
    )
    commands: dict[str, Callable[[Sequence[str]], int]] = {f.__name__: f for f in known}
    if name not in commands:
        import difflib

        near = [c for c in commands if c.startswith(name)] or difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "textebm --help lists them"
        raise UsageError(f"there is no command {name!r}; {hint}")
    return commands[name]
