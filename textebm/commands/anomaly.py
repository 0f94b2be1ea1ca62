"""`textebm anomaly`."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options
from textebm.commands.terminal import (
    choose_device,
    find_corpus,
    parse,
    progress_bar,
    refuse,
    require_file,
    say,
    write,
    writing,
)
from textebm.commands.training import given, interrupts, preset_of
from textebm.config import Config, preset_names, to_dict
from textebm.errors import DivergenceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from tqdm import tqdm

    from textebm.anomaly.figures import Findings

OF_DATA = ("data", "data_dir", "text_field")
"""Settings that may be other ones than those a model was trained with."""
OF_TRAINING = ("config", "method", "splits", "seeds", "last", "run_dir", "max_minutes")
"""Options of the runs that are trained."""


def anomaly(arguments: Sequence[str]) -> int:
    """`textebm anomaly`."""
    from textebm import checkpoint
    from textebm.model.inference import METHODS

    folder = _model_folder(arguments)
    settings = preset_of(_with_preset(arguments))[0] if folder is None else checkpoint.read_run(folder)[0]
    chosen = parse(options.Anomaly, "anomaly", arguments, options.Anomaly(settings=settings))
    if chosen.plot is not None:
        from textebm.plots import require_matplotlib

        require_matplotlib()  # before anything is trained
    if settings.generator.kind == "convolutional":
        from textebm.complexity import require_compressor

        require_compressor()
    if not METHODS[kind := settings.inference.kind].has_chain:
        refuse(chosen, f"is of a posterior chain, and inference.kind {kind} has none", "posterior_steps")
    if folder is None:
        refuse(chosen, "is of sentences, and without --anomalies a class of images is held out", "per_token")
        return _train_and_score(chosen)
    refuse(chosen, "is of runs to be trained, and a trained model is scored", *OF_TRAINING)
    chosen = dataclasses.replace(chosen, model=chosen.model or str(folder))
    _require_own_settings(chosen, settings)
    score = _score_text if settings.generator.kind == "recurrent" else _score_images
    return score(chosen, folder)


def _with_preset(arguments: Sequence[str]) -> list[str]:
    """The command line, with the preset for anomalies of the data where no other is named."""
    named = given(arguments, "--data", "--config")
    preset = f"{named.get('--data')}-anomaly"
    known = "--config" not in named and preset in preset_names()
    return [*arguments, "--config", preset] if known else [*arguments]


def _model_folder(arguments: Sequence[str]) -> Path | None:
    """What is scored and not trained: what --model names, or with --anomalies the newest run. Of a run folder it is the
    newest checkpoint, whichever is the best.
    """
    named = given(arguments, "--model", "--anomalies")
    if not named:
        return None
    from textebm import checkpoint

    found, description = checkpoint.find_model(named.get("--model"))
    say(f"model: {description}")
    run = Path(named["--model"]) if "--model" in named else found.parent.parent
    return checkpoint.pointed_at(run, "last") or found


def _require_own_settings(chosen: options.Anomaly, own: Config) -> None:
    """Check that no setting of a trained run is to be another one.

    Raises:
        UsageError: one is.
    """
    from textebm.training import differences

    data = {name: getattr(chosen.settings, name) for name in OF_DATA}
    if changed := differences(to_dict(dataclasses.replace(own, **data)), to_dict(chosen.settings)):
        raise UsageError(f"{chosen.model} is trained, and its settings are its own: {', '.join(changed)}")


# ---- images


def _train_and_score(chosen: options.Anomaly) -> int:
    """Train a model for each class, split and seed, and score it."""
    from textebm.anomaly import held_out
    from textebm.data.registry import short_name
    from textebm.materials import ImageMaterial

    settings = chosen.settings
    if settings.generator.kind == "convolutional" and (download := ImageMaterial.download(settings)) is not None:
        say(f"downloading {download}")
    cells = held_out.cells(settings, chosen.held_out, chosen.splits, chosen.seeds)
    runs = Path(chosen.run_dir or Path("runs") / f"anomaly-{short_name(settings.data)}")
    device = choose_device(chosen.device)
    deadline = None if chosen.max_minutes is None else time.monotonic() + 60 * chosen.max_minutes
    findings, code = _findings(chosen, short_name(settings.data), device), 0
    with interrupts() as interrupted, _View() as view:
        sitting = held_out.Sitting(
            runs, device, findings.sampling, chosen.last, deadline, lambda: interrupted() > 0, view, view.scored
        )
        for split, same in held_out.grouped(cells):
            found = []
            for cell in same:
                try:
                    done = None if sitting.is_over() else held_out.work_on(cell, settings, sitting)
                except DivergenceError as error:  # a finding about this cell; the others are none the worse for it
                    view.write(f"{cell.name}: {error}")
                    done, code = None, error.exit_code
                if done is None:
                    findings.unfinished.append(cell.name)
                    continue
                test, epochs = done
                found.append((cell.seed, epochs))
                view.write(f"{cell.name}: scored at {len(epochs)} epochs")
                if len(epochs) < len(sitting.epochs(settings)):
                    findings.warnings.append(f"{cell.name} had left epochs behind unscored: {len(epochs)} are scored")
            if found:
                findings.add(test.anomalous, found, test.facts, test.named)
                last = found[0][1][-1].scores.rankings[chosen.ranked_by]
                _draw(chosen, f"{split}-{same[0].number}", last, test.anomalous)
    if findings.unfinished:
        say(f"not done: {', '.join(findings.unfinished)}. The same command goes on")
    if findings.cells:
        _write(chosen, findings)
    return 130 if interrupted() else code


def _score_images(chosen: options.Anomaly, folder: Path) -> int:
    """Score the newest checkpoint of a run that was trained without a class."""
    from textebm.anomaly import held_out
    from textebm.data.images import class_number
    from textebm.materials import ImageMaterial

    if chosen.anomalies is not None:
        raise UsageError(f"{chosen.model} is a model of images, and --anomalies are sentences")
    settings = chosen.settings
    if settings.images.exclude_class is None:
        raise UsageError(
            f"{chosen.model} was trained on every class, so none is an anomaly to it: textebm anomaly --held-out "
            "trains without one, and so does textebm train --images.exclude-class"
        )
    corpus = ImageMaterial.resolve(settings)
    test = held_out.Test.of(corpus)
    assert corpus.excluded is not None  # `Test.of` has seen to it
    named = [class_number(name, corpus.class_names, corpus.name) for name in chosen.held_out]
    if named not in ([], [corpus.excluded]):
        raise UsageError(f"{chosen.model} was trained without the class {corpus.class_names[corpus.excluded]} alone")
    with _View() as view:
        device = choose_device(chosen.device)
        findings = _findings(chosen, corpus.name, device)
        sitting = held_out.Sitting(Path(), device, findings.sampling, watch=view.scored)
        found = held_out.score_checkpoint(folder, test, sitting)
    findings.add(test.anomalous, [(settings.seed, [found])], test.facts, test.named)
    _draw(chosen, f"{test.split}-{corpus.excluded}", found.scores.rankings[chosen.ranked_by], test.anomalous)
    _write(chosen, findings)
    return 0


# ---- text


def _score_text(chosen: options.Anomaly, folder: Path) -> int:
    """Score a test split and a file of anomalous sentences by a trained model of text."""
    import numpy as np

    from textebm import generation, marginal
    from textebm.anomaly.scores import EpochScores, Scores, score
    from textebm.checkpoint import read_run
    from textebm.data.text import encode
    from textebm.lm_eval.corpus import read_sentences

    if chosen.anomalies is None:
        raise UsageError("a model of text wants --anomalies, a file of sentences of another kind than its own")
    require_file("--anomalies", chosen.anomalies)
    refuse(chosen, "is of classes of images, and the model writes sentences", "held_out")
    if chosen.ranked_by == "adjusted":
        raise UsageError("--ranked-by adjusted is of images; of sentences, --per-token allows for their length")
    settings = chosen.settings
    corpus = find_corpus(settings.data, settings.data_dir, settings.text_field)
    device = choose_device(chosen.device)
    model, tokenizer = generation.load(folder, device)
    texts = [
        encode(sentences, tokenizer, settings.max_length, settings.overlong)  # none is left out for an unknown word
        for sentences in (corpus.sentences("test"), read_sentences(Path(chosen.anomalies)))
    ]
    for name, text in zip((f"{corpus.name}, test", chosen.anomalies), texts, strict=True):
        say(f"{name}: {text.report}")
    progress = read_run(folder)[1]
    findings = _findings(chosen, corpus.name, device)
    with _View() as view:
        sides = [
            score(model, text, settings.seed + side, findings.sampling, view.scored) for side, text in enumerate(texts)
        ]
    scores = Scores(*(np.concatenate([side.parts[name] for side in sides]) for name in sides[0].parts))
    anomalous = np.arange(len(scores.nll)) >= len(texts[0])
    tokens = np.concatenate([text.lengths[np.arange(len(text))] + 1 for text in texts])

    scores = scores.per_token(tokens) if chosen.per_token else scores
    runs = [(settings.seed, [EpochScores(progress.epoch, progress.step, scores)])]
    digests = "-".join(marginal.text_digest(text) for text in texts)
    facts = {"anomaly": Path(chosen.anomalies).name, "test": digests, "sentences": len(anomalous)}
    where = {"held_out": Path(chosen.anomalies).name, "tokens": int(tokens.sum())}
    findings.add(anomalous, runs, facts, where)
    _draw(chosen, "text", scores.rankings[chosen.ranked_by], anomalous)
    _write(chosen, findings)
    return 0


# ---- output


class _View:
    """Shows training and scoring: bars on a terminal, a line for each run anywhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.scoring = progress_bar(None, " scored", what="scores")

    def __enter__(self) -> "_View":
        return self

    def __exit__(self, *ignored: object) -> None:
        self._close()
        self.scoring.close()

    def prepare(self, what: str, samples: int) -> None:
        """Nothing: what is prepared is told by its first use."""

    def begin(self, steps: int, done: int) -> None:
        self._close()
        self.bar = progress_bar(steps, "step", initial=done)

    def step(self, units: int) -> None:
        assert self.bar is not None
        self.bar.update()

    def record(self, line: dict[str, Any]) -> None:
        """Nothing: it is in the run's log."""

    def scored(self, samples: int) -> None:
        self.scoring.update(samples)

    def write(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        say(text)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _findings(chosen: options.Anomaly, data: str, device: "torch.device") -> "Findings":
    """What nothing has been found for yet."""
    from textebm.anomaly.figures import Findings
    from textebm.anomaly.scores import Sampling
    from textebm.hardware import precision_on

    settings = chosen.settings
    sampling = Sampling(chosen.samples, chosen.posterior_steps, precision_on(settings.precision, device))
    return Findings(settings, data, sampling, chosen.ranked_by, chosen.per_token, chosen.resamples)


def _write(chosen: options.Anomaly, findings: "Findings") -> None:
    """To standard output, or to the file named."""
    for warning in findings.warnings:
        say(f"warning: {warning}")
    found = findings.result()
    as_json = chosen.format == "json"
    write(json.dumps(found, ensure_ascii=False, indent=2) if as_json else _describe(found), chosen.output)


def _describe(found: dict[str, Any]) -> str:
    """Tables for people: a column a class."""
    from textebm.lm_eval.tables import render

    details = found["details"]
    low, high = found["interval"]
    parts = [f"AUPRC {found['score']:.3f} (95 % interval {low:.3f} to {high:.3f})"]
    for split in dict.fromkeys(cell.get("split") for cell in details["cells"]):
        cells = [cell for cell in details["cells"] if cell.get("split") == split]
        told = [[name, *(tell(cell) for cell in cells)] for name, tell in ROWS.items()]
        rows = [row for row in told if any(figure != "-" for figure in row[1:])]
        names = [cell["held_out"] for cell in cells]
        rows += [row for table in details["published"] for row in _published_rows(table, names)]
        parts += ["" if split is None else f"\nsplit {split}", render(("", *names), rows, "text")]
    parts += [f"\n{table['title']}: {table['source']}; {table['note']}" for table in details["published"]]
    return "\n".join([*parts, f"\nsignature: {found['signature']}"])


def _published_rows(table: dict[str, Any], names: list[str]) -> list[list[str]]:
    """The rows of a published table, for our columns; those without any of them are left out."""
    rows = []
    for system, *figures in table["rows"]:
        of = dict(zip(table["columns"], figures, strict=True))
        if any(name in of for name in names):
            rows.append([f"{system} (published)", *(of.get(name, "-") for name in names)])
    return rows


def _spread(figures: dict[str, Any]) -> str:
    """A mean, and a spread where there is one."""
    return f"{figures['mean']:.3f}" + ("" if figures["sd"] is None else f" ± {figures['sd']:.3f}")


def _figure(value: float | None) -> str:
    """A figure, or that there is none."""
    return "-" if value is None else f"{value:.3f}"


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "AUPRC": lambda cell: _spread(cell["auprc"]),
    "95 % interval": lambda cell: f"{cell['interval'][0]:.3f} to {cell['interval'][1]:.3f}",
    "chance (base rate)": lambda cell: f"{cell['base_rate']:.3f}",
    "lowest possible": lambda cell: f"{cell['worst']['auprc']:.3f}",
    "AUPRC by -log p(z) alone": lambda cell: f"{cell['auprc_by']['prior']:.3f}",
    "AUPRC by -log p(x|z) alone": lambda cell: f"{cell['auprc_by']['likelihood']:.3f}",
    "AUPRC adjusted for complexity": lambda cell: _figure(cell["auprc_by"].get("adjusted")),
    "AUROC": lambda cell: _spread(cell["auroc"]),
}
"""Rows of a table for people."""


def _draw(chosen: options.Anomaly, name: str, totals: "NDArray[np.float64]", anomalous: "NDArray[np.bool_]") -> None:
    """Draw the pictures of one test, and write their numbers."""
    if (folder := chosen.plot) is None:
        return
    from textebm import plots
    from textebm.anomaly.figures import curves

    found = curves(totals, anomalous, chosen.ranked_by, chosen.per_token)
    with writing(folder, "--plot"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    plots.anomalies(found, Path(folder), name)
