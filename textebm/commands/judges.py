"""`textebm calibrate`, and how the training of a judge is shown."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textebm import options
from textebm.commands.terminal import choose_device, find_corpus, parse, progress_bar, say, write

if TYPE_CHECKING:
    from tqdm import tqdm

    from textebm.lm_eval.calibration import RealRow


def calibrate(arguments: Sequence[str]) -> int:
    """`textebm calibrate`."""
    chosen = parse(options.Calibrate, "calibrate", arguments)
    from textebm import hardware
    from textebm.data.registry import SPLITS
    from textebm.lm_eval import calibration
    from textebm.lm_eval.corpus import Corpus as Text
    from textebm.lm_eval.judging import JudgeOptions
    from textebm.lm_eval.recipes import get_recipe

    if chosen.recipe is not None:
        get_recipe(chosen.recipe)  # before a text is read
    corpus = find_corpus(chosen.data, chosen.data_dir, None)
    train, valid, test = (Text(corpus.sentences(split), split) for split in SPLITS)
    names = calibration.JUDGES if chosen.judge == "all" else (chosen.judge,)
    device = str(choose_device(chosen.device)) if calibration.LSTM in names else "cpu"  # n-grams are counted there
    started, commit = time.monotonic(), hardware.commit()
    with JudgeView() as view:
        how = JudgeOptions(
            lmplz=chosen.lmplz,
            recipe=chosen.recipe,
            epochs=chosen.epochs,
            minutes=chosen.max_minutes,
            device=device,
            precision=chosen.precision,
            observe=view,
        )
        rows, texts = [], (train, valid, test)
        for row in calibration.calibrate(*texts, data=corpus.name, judges=names, seed=chosen.seed, options=how):
            view.close()
            say(_describe_real_row(row))
            rows.append(row)
    if chosen.format == "text":
        write("\n".join(map(_describe_real_row, rows)), chosen.output)
        return 0
    result = _calibration_result(chosen, arguments, rows, commit, device, time.monotonic() - started)
    write(json.dumps(result, indent=2), chosen.output)
    return 0


def _calibration_result(
    chosen: options.Calibrate,
    arguments: Sequence[str],
    rows: "list[RealRow]",
    commit: str | None,
    device: str,
    seconds: float,
) -> dict[str, Any]:
    """The first judge's score, every judge's row, and what it was measured on."""
    from textebm import hardware

    first = rows[0].as_dict()
    return {
        **{key: first[key] for key in ("metric", "score", "interval", "signature")},
        "command": f"textebm calibrate {_without(arguments, '--data-dir', '--output', '--lmplz')}",
        "commit": commit,
        "seed": chosen.seed,
        "hardware": hardware.hardware_class(device),
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


class JudgeView:
    """Shows the training of an LSTM judge: a progress bar on a terminal, a line an epoch anywhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.tokens = 0

    def __enter__(self) -> "JudgeView":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event of a judge's training."""
        kind = event["kind"]
        if kind == "step":
            if self.bar is None:
                self.bar = progress_bar(self.tokens, "token")
            self.bar.update(event["tokens"])
            return
        self.close()
        if kind in ("start", "resume"):
            self.tokens = event["tokens"]
        if line := describe_judge_event(event):
            say(line)


def describe_judge_event(event: Mapping[str, Any]) -> str | None:
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
