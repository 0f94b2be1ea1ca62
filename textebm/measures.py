"""What is measured of a cell of an experiment: of text FPPL, RPPL, likelihoods; of images MSE and a Fréchet distance.

Each measurement is a command that a user could give, or figures that no command tells; what it found stays in the run's
folder, so that a sitting that ends goes on with the next one.
"""

import dataclasses
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from textebm import checkpoint, evaluation, generation, hardware, image_generation, plots, training, whole_files
from textebm.data.registry import Corpus
from textebm.errors import CheckpointError
from textebm.lm_eval.kept import grouped, keep_scores, kept_scores
from textebm.lm_eval.protocols import DEFAULT_PROTOCOL
from textebm.materials.images import ImageMaterial
from textebm.materials.text import batches_an_epoch, load_splits

if TYPE_CHECKING:
    from textebm.experiment import Cell, Sitting

SAMPLES = 20
"""Generated sentences that a result quotes."""
LEARNING_CURVE_LINES = 10
HELD_OUT_SENTENCES = 2000
"""At most so many samples of valid and of test are scored, spread evenly, the same ones for every method."""
LIKELIHOOD_SENTENCES = 200
"""Of valid, whose marginal likelihood is estimated, spread evenly: 500 samples of z each cost as much as an epoch."""
ACTIVE_UNIT_SENTENCES = 200
IMAGES_DRAWN = 2000
"""Generated images that the Fréchet distance is of; the real ones are the whole test split."""
FRECHET_FEATURES = "mobilenetv2"
"""Whose features: those whose weights can be had everywhere, so that tables compare; no FID."""

Metric = Literal["fppl", "rppl"]
METRICS: tuple[Metric, ...] = ("fppl", "rppl")
IMAGE_METRICS = ("mse", "frechet")

SCORES, FIGURES, LIKELIHOOD = "scores", "figures.json", "likelihood.json"
"""In a run folder: what was measured of its best checkpoint, and the scores of each sentence behind it. A folder of
results has SCORES too, for sums over groups of sentences."""

Step = Callable[[], int]
"""A measurement that is still to be made; it returns an exit code."""


class Measures(ABC):
    """What is measured of the cells of one kind of data."""

    def __init__(self, sitting: "Sitting") -> None:
        self.sitting = sitting

    @abstractmethod
    def is_complete(self, result: Mapping[str, Any]) -> bool:
        """Whether a result has all that this sitting would measure."""

    @abstractmethod
    def steps(self, cell: "Cell") -> Iterator[Step]:
        """What is still to be measured."""

    @abstractmethod
    def found(self, cell: "Cell", results: Path) -> dict[str, Any]:
        """All that was measured, in JSON types; what goes into files of its own is written into `results`."""

    def _folder(self, cell: "Cell") -> Path:
        return self.sitting.scores_dir(cell)

    def _model(self, cell: "Cell") -> list[str]:
        return ["--model", str(self.sitting.run_dir(cell)), *self.sitting.common]

    def _run(self, name: str, cell: "Cell", file: str, *more: str) -> Step:
        """A command whose JSON goes into a file among the scores of a cell's run."""
        words = [*self._model(cell), *more, "--output", str(self._folder(cell) / file)]
        return functools.partial(self.sitting.run, name, words)

    def _keep_figures(self, cell: "Cell", found: Mapping[str, Any]) -> int:
        whole_files.write_text(self._folder(cell) / FIGURES, as_json(found))
        return 0


class TextMeasures(Measures):
    """FPPL and RPPL under every protocol of the sitting, held-out likelihoods, samples."""

    def is_complete(self, result: Mapping[str, Any]) -> bool:
        """Whether a result has all that this sitting would measure."""
        protocols = self.sitting.protocols
        measured = all(self._is_measured(_scores_of(result, protocol), protocol) for protocol in protocols)
        return measured and "likelihood" in result

    def _is_measured(self, scores: Mapping[str, Any], protocol: str) -> bool:
        return all(
            metric in scores and scores[metric]["details"]["repeats"]["runs"] >= self.sitting.repeats(protocol)
            for metric in METRICS
        )

    def steps(self, cell: "Cell") -> Iterator[Step]:
        """What is still to be measured."""
        folder, sitting = self._folder(cell), self.sitting
        if not (folder / FIGURES).exists():
            yield functools.partial(self._measure_figures, cell)
        for protocol in sitting.protocols:
            if not self._is_measured(self._read_scores(cell, protocol), protocol):
                for metric in METRICS:
                    yield self._score(cell, protocol, metric)
        if not (folder / LIKELIHOOD).exists():  # last: it takes longest, and the scores stand without it
            yield self._run("likelihood", cell, LIKELIHOOD, "-n", str(LIKELIHOOD_SENTENCES))

    def _measure_figures(self, cell: "Cell") -> int:
        config = cell.config
        return self._keep_figures(
            cell, figures(self.sitting.run_dir(cell), self.sitting.find_corpus(config), self.sitting.device)
        )

    def _score(self, cell: "Cell", protocol: str, metric: Metric) -> Step:
        """FPPL or RPPL of samples that are drawn with seed 0, as the judges' seeds are 0, 1, ... in every cell."""
        wanted = cell.experiment.samples
        number = [] if wanted is None else ["-n", str(wanted)]
        repeats = self.sitting.repeats(protocol)
        seeds = ["--repeats", str(repeats)] if repeats > 1 else []
        sentences = ["--sentence-scores", str(self._folder(cell) / f"{protocol}-{metric}.npz")]
        how = ["--protocol", protocol, *number, *seeds, *sentences]
        return self._run(metric, cell, f"{protocol}-{metric}.json", *how)

    def found(self, cell: "Cell", results: Path) -> dict[str, Any]:
        """All that was measured; the scores of sentences go into files of their own."""
        place = f"{SCORES}/{cell.name}"
        found = checkpoint.read_json(self._folder(cell) / FIGURES)
        likelihood = self._folder(cell) / LIKELIHOOD
        if likelihood.exists():
            found["likelihood"] = checkpoint.read_json(likelihood)
        by_protocol = {protocol: self._read_scores(cell, protocol) for protocol in self._kept_protocols(cell)}
        scores = by_protocol.pop(DEFAULT_PROTOCOL)
        judges = {"judges": by_protocol} if by_protocol else {}
        self._write_sentence_scores(cell, results / place)
        return {"sentence_scores": place, **found, **scores, **judges}

    def _read_scores(self, cell: "Cell", protocol: str) -> dict[str, Any]:
        paths = {metric: self._folder(cell) / f"{protocol}-{metric}.json" for metric in METRICS}
        kept = [metric for metric, path in paths.items() if path.exists() and path.with_suffix(".npz").exists()]
        return {metric: checkpoint.read_json(paths[metric]) for metric in kept}

    def _write_sentence_scores(self, cell: "Cell", folder: Path) -> None:
        """What intervals of differences need beside the result, small enough to keep where the run is not kept."""
        folder.mkdir(parents=True, exist_ok=True)
        for protocol in self._kept_protocols(cell):
            for metric in METRICS:
                name = f"{protocol}-{metric}.npz"
                kept = kept_scores(self._folder(cell) / name)
                keep_scores(folder / name, kept.signature, grouped(kept.runs))

    def _kept_protocols(self, cell: "Cell") -> list[str]:
        """Those that were measured, in this sitting or an earlier one."""
        names = {path.stem.removesuffix("-fppl") for path in self._folder(cell).glob("*-fppl.json")}
        every = dict.fromkeys((*self.sitting.protocols, *sorted(names)))
        return [name for name in every if self._read_scores(cell, name)]


class ImageMeasures(Measures):
    """MSE of test images made again, and a Fréchet distance of generated ones from the test split."""

    def is_complete(self, result: Mapping[str, Any]) -> bool:
        """Whether a result has all that this sitting would measure."""
        return all(metric in result for metric in IMAGE_METRICS)

    def steps(self, cell: "Cell") -> Iterator[Step]:
        """What is still to be measured."""
        folder = self._folder(cell)
        if not (folder / FIGURES).exists():
            yield functools.partial(self._measure_figures, cell)
        if not (folder / "mse.json").exists():
            grid = ["--grid", str(folder / "reconstructions.png"), "--format", "json"]
            yield self._run("reconstruct", cell, "mse.json", *grid)
        if not (folder / "frechet.json").exists():
            n = IMAGES_DRAWN if cell.experiment.samples is None else cell.experiment.samples
            how = ["-n", str(n), "--features", FRECHET_FEATURES, "--against", "test"]
            yield self._run("fid", cell, "frechet.json", *how)

    def _measure_figures(self, cell: "Cell") -> int:
        found = image_figures(self.sitting.run_dir(cell), self.sitting.device, self.sitting.data_dir)
        return self._keep_figures(cell, found)

    def found(self, cell: "Cell", results: Path) -> dict[str, Any]:
        """All that was measured."""
        found = checkpoint.read_json(self._folder(cell) / FIGURES)
        return {**found, **{name: checkpoint.read_json(self._folder(cell) / f"{name}.json") for name in IMAGE_METRICS}}


MEASURES: dict[str, type[Measures]] = {"recurrent": TextMeasures, "convolutional": ImageMeasures}
"""Kind of generator -> what is measured of its cells."""


def _scores_of(result: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """FPPL and RPPL under a protocol in a result."""
    of_protocol = result if protocol == DEFAULT_PROTOCOL else result.get("judges", {}).get(protocol, {})
    return {metric: of_protocol[metric] for metric in METRICS if metric in of_protocol}


def as_json(value: Mapping[str, Any]) -> str:
    """As it stands in a file of results."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# -------------------------------------------------------------------------------------------------------------- figures


def figures(run_dir: Path, corpus: Corpus, device: torch.device | str) -> dict[str, Any]:
    """What is reported of a run on text beside FPPL and RPPL: how it was made, held-out figures, its learning curve,
    samples.

    Args:
        run_dir: a run folder; its best checkpoint is measured.
        corpus: the corpus of the run.
        device: where to compute.

    Returns:
        In JSON types. `valid` and `test` are measured on `HELD_OUT_SENTENCES` sentences at most, with the chains of
        training.

    Raises:
        CheckpointError: the folder holds no run.
    """
    folder, _ = checkpoint.find_model(str(run_dir))
    config, progress = checkpoint.read_run(folder)
    model, tokenizer = generation.load(folder, device)
    splits = load_splits(corpus, config, tokenizer)
    held_out: dict[str, dict[str, Any]] = {
        split: evaluation.validate(model, text, config.seed, HELD_OUT_SENTENCES).to_dict()
        for split, text in (("valid", splits.valid), ("test", splits.test))
    }
    if config.evaluation.active_unit_sentences and config.prior.dimensions:
        units = evaluation.active_units(model, splits.valid, config.seed, ACTIVE_UNIT_SENTENCES)
        held_out["valid"] |= dict(zip(("active_units", "active_unit_variances"), units, strict=True))
    return {
        **how_it_was_made(run_dir, progress.epoch + progress.batch / batches_an_epoch(config, splits.train)),
        **{split: training.finite(values) for split, values in held_out.items()},
        "unigram_perplexity": evaluation.unigram_perplexity(splits.train, splits.valid, tokenizer.get_vocab_size()),
        "samples": [dataclasses.asdict(s) for s in generation.generate(model, tokenizer, SAMPLES, config.seed)],
    }


def image_figures(run_dir: Path, device: torch.device | str, data_dir: str | None = None) -> dict[str, Any]:
    """What is reported of a run on images beside MSE and Fréchet distance: how it was made, held-out figures, its
    learning curve.

    Args:
        run_dir: a run folder; its best checkpoint is measured.
        device: where to compute.
        data_dir: folder with local copies of named sets (default: where they were).

    Raises:
        CheckpointError: the folder holds no run.
    """
    folder, _ = checkpoint.find_model(str(run_dir))
    config, progress = checkpoint.read_run(folder)
    config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
    material = ImageMaterial.load(config, ImageMaterial.resolve(config), folder)
    model = image_generation.load(folder, device)
    held_out: dict[str, dict[str, Any]] = {
        split: evaluation.validate_images(model, images, config.seed, HELD_OUT_SENTENCES).to_dict()
        for split, images in (("valid", material.valid), ("test", material.test))
    }
    held_out["valid"] |= material.latent_use(model) if config.evaluation.active_unit_sentences else {}
    return {
        **how_it_was_made(run_dir, progress.epoch + progress.batch / material.batches_an_epoch),
        **{split: training.finite(values) for split, values in held_out.items()},
    }


def how_it_was_made(run_dir: Path, epochs: float) -> dict[str, Any]:
    """Commit, hardware, length and learning curve of a run.

    Args:
        run_dir: a run folder.
        epochs: after which the checkpoint that is measured was saved.

    Raises:
        CheckpointError: the folder holds no run.
    """
    last = checkpoint.pointed_at(run_dir, "last")
    if last is None:
        raise CheckpointError(f"{run_dir} holds no run")
    _, measured = checkpoint.read_run(checkpoint.find_model(str(run_dir))[0])
    _, trained = checkpoint.read_run(last)
    log = plots.read_log(run_dir)
    sittings = [line for line in log if line["kind"] in ("start", "resume")]
    return {
        "commit": sittings[0].get("commit"),
        "commits": list(dict.fromkeys(line.get("commit") for line in sittings)),
        "hardware": sittings[0].get("hardware"),
        "versions": hardware.versions(),
        "steps": measured.step,
        "epochs": epochs,
        "steps_trained": trained.step,
        "minutes": round(trained.seconds / 60, 1),
        "sittings": len(sittings),
        "exploded_chains": exploded_chains(log),
        "learning_curve": [line for line in log if line["kind"] == "valid"][-LEARNING_CURVE_LINES:],
    }


def exploded_chains(log: Sequence[Mapping[str, Any]]) -> int | None:
    """Chains that exploded in a run; None where its log is of before they were counted.

    Args:
        log: the lines of a run's log: those of training hold the mean over their steps.
    """
    exploded, last = 0.0, 0
    for line in log:
        if line["kind"] == "train":
            if "exploded_chains" not in line:
                return None
            exploded += line["exploded_chains"] * (line["step"] - last)
            last = line["step"]
    return round(exploded)
