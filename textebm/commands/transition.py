"""`textebm transition`."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options, plain_json, whole_files
from textebm.commands.terminal import (
    choose_device,
    find_images,
    find_text,
    model_folder,
    parse,
    progress_bar,
    refuse,
    say,
    write,
    writing,
)
from textebm.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from textebm.analysis import Judge, QualityCurve, Transition
    from textebm.data.dataset import Dataset
    from textebm.diagnostics import Diagnostics
    from textebm.model.latent_model import LatentModel

METRIC = "prior-energy-change"
STEPS = 100
"""Of a chain, where neither its length nor marks are given."""


OF_DIAGNOSTICS = (
    "diagnostic_steps",
    "posteriors",
    "posterior_chains",
    "posterior_steps",
    "posterior_samples",
    "ais_steps",
)
OF_SENTENCES = (*(field.name for field in dataclasses.fields(options.DecodingOptions)), "text_field", "lmplz")


def transition(arguments: Sequence[str]) -> int:
    """`textebm transition`."""
    chosen = parse(options.Transition, "transition", arguments)
    steps = _length(chosen)
    from textebm import diagnostics, plots

    if chosen.diagnostics:
        diagnostics.require_arviz()
    if chosen.plot is not None:
        plots.require_matplotlib()
    folder = model_folder(chosen)
    model, tokenizer = _load(chosen, folder)
    _refuse_idle(chosen, of_images=tokenizer is None)
    judge = _judge(chosen, folder, model) if chosen.quality else None  # what is missing is said before hours of chains
    held_out = _held_out(chosen, folder, tokenizer) if chosen.diagnostics else None
    found, curve, diagnosed = _work(chosen, steps, model, tokenizer, judge, held_out)
    result = plain_json.finite(_result(chosen, folder, model, found, curve, diagnosed))
    _draw(chosen, result["details"], found)
    for warning in result["details"]["warnings"]:
        say(f"warning: {warning}")
    as_json = chosen.format == "json"
    described = json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) if as_json else describe(result)
    write(described, chosen.output)
    return 0


def _length(chosen: options.Transition) -> int:
    """Steps of the chains.

    Raises:
        UsageError: a mark lies behind the last one.
    """
    last = max(chosen.marks, default=0)
    steps = chosen.steps or last or STEPS
    if last > steps:
        raise UsageError(f"--marks has {last}, and the chains have {steps} steps: make them longer with --steps")
    return steps


def _refuse_idle(chosen: options.Transition, of_images: bool) -> None:
    """Refuse options of what is not done."""
    if not chosen.quality:
        refuse(chosen, "is of --quality", "quality_steps", "samples", "lmplz", "features", "weights", "real_n")
    if not chosen.diagnostics:
        refuse(chosen, "is of --diagnostics", *OF_DIAGNOSTICS)
    if not (chosen.quality or chosen.diagnostics):
        refuse(chosen, "is of --quality and --diagnostics", "data", "data_dir", "text_field")
    if of_images:
        refuse(chosen, "is of sentences, and the model makes images", *OF_SENTENCES)
    else:
        refuse(chosen, "is of images, and the model writes text", "features", "weights", "real_n", "strip")


def _load(chosen: options.Transition, folder: Path) -> "tuple[LatentModel, Tokenizer | None]":
    """The model, and of a model of text its tokeniser."""
    from textebm import analysis, generation, image_generation
    from textebm.model.latent_model import read_model_config

    device, tokenizer = choose_device(chosen.device), None
    if read_model_config(folder).image is None:
        model, tokenizer = generation.load(folder, device)
    else:
        model = image_generation.load(folder, device)
    analysis.require_latent(model)
    return model, tokenizer


def _judge(chosen: options.Transition, folder: Path, model: "LatentModel") -> "Judge":
    """What measures quality: as `textebm fppl` and `textebm fid` do, against the real training split."""
    from textebm import analysis

    if model.config.image is None:
        from textebm.commands.measuring import real_text

        same = {name: getattr(chosen, name) for name in ("data", "data_dir", "text_field", "lmplz", "seed")}
        real = real_text(options.Fppl(**same), folder)
        same = {"lmplz": chosen.lmplz, "seed": chosen.seed, "max_length": model.config.longest}
        return analysis.text_judge(real.train, real.test, data=real.name, text_policy=real.policy, **same)
    from textebm.commands.fid import trained_on
    from textebm.image_eval import FeatureExtractor

    extractor = FeatureExtractor.load(chosen.features, chosen.weights, model.device, say)
    images, facts = trained_on(folder, "train", chosen.data_dir, chosen.data)
    return analysis.image_judge(images, extractor, facts, chosen.real_n)


def _held_out(chosen: options.Transition, folder: Path, tokenizer: "Tokenizer | None") -> "Dataset":
    """The validation split, as the model reads it."""
    if tokenizer is None:
        return find_images(folder, chosen.data, chosen.data_dir).encoded("valid")
    return find_text(folder, tokenizer, "valid", chosen.data, chosen.data_dir, chosen.text_field)[1]


def _work(
    chosen: options.Transition,
    steps: int,
    model: "LatentModel",
    tokenizer: "Tokenizer | None",
    judge: "Judge | None",
    held_out: "Dataset | None",
) -> "tuple[Transition, QualityCurve | None, Diagnostics | None]":
    """The chains, and whatever else is asked for."""
    from textebm import analysis, diagnostics
    from textebm.model.ais import Plan
    from textebm.model.decoding import Decoding

    length = chosen.max_length or model.config.longest
    decoding = Decoding(chosen.decoding, chosen.temperature, chosen.top_k, chosen.top_p, chosen.beam_size, length)
    curve = diagnosed = posterior = None
    if held_out is not None:
        posterior = diagnostics.posterior_samples(model, held_out, chosen.seed, chosen.posterior_samples)
    with progress_bar(steps, "step", what="chains") as bar:
        found = analysis.transition(
            model,
            tokenizer,
            chains=chosen.n,
            shown=chosen.shown,
            steps=steps,
            marks=chosen.marks or None,
            seed=chosen.seed,
            decoding=decoding,
            posterior=posterior,
            tick=bar.update,
        )
    if judge is not None:
        marks = chosen.quality_steps or (*analysis.QUALITY_STEPS, *found.marks)
        with progress_bar(chosen.samples * len(set(marks)), "sample", what="quality") as bar:
            curve = analysis.quality_curve(
                model, judge, tokenizer, steps=marks, samples=chosen.samples, seed=chosen.seed, tick=bar.update
            )
    if held_out is not None:
        with progress_bar(chosen.diagnostic_steps + chosen.posterior_steps, "step", what="diagnostics") as bar:
            diagnosed = diagnostics.diagnose(
                model,
                held_out,
                steps=chosen.diagnostic_steps,
                chains=chosen.n,
                posteriors=chosen.posteriors,
                posterior_chains=chosen.posterior_chains,
                posterior_steps=chosen.posterior_steps,
                posterior=posterior,
                plan=Plan(steps=chosen.ais_steps, settling=chosen.ais_steps) if chosen.ais_steps else None,
                seed=chosen.seed,
                tick=bar.update,
            )
    return found, curve, diagnosed


def _result(
    chosen: options.Transition,
    folder: Path,
    model: "LatentModel",
    found: "Transition",
    curve: "QualityCurve | None",
    diagnosed: "Diagnostics | None",
) -> dict[str, Any]:
    """One JSON object."""
    import numpy as np

    from textebm._version import __version__
    from textebm.lm_eval import bootstrap
    from textebm.lm_eval.signature import Signature

    changes, prior = np.array(found.change), model.config.prior
    signature = Signature(
        {
            "metric": METRIC,
            "latent-model": whole_files.sha256(folder / "model.safetensors")[:12],
            "steps": found.steps,
            "chains": found.chains,
            "interval": "bootstrap-1000",
            "seed": chosen.seed,
            "version": __version__,
        }
    )
    warnings = [] if curve is None else list(curve.warnings)
    if not prior.is_tilted:
        warnings.append("the prior is the reference Gaussian: nothing pulls its chains, and generation runs none")
    return {
        "metric": METRIC,
        "score": float(changes.mean()),
        "interval": list(bootstrap.mean_interval(changes, seed=chosen.seed)),
        "signature": str(signature),
        "details": {
            "prior": {"kind": prior.kind, "step_size": prior.step_size, "temperature": prior.temperature},
            **found.as_dict(),
            "quality": None if curve is None else curve.as_dict(),
            "diagnostics": None if diagnosed is None else diagnosed.as_dict(),
            "warnings": warnings,
        },
    }


def _draw(chosen: options.Transition, details: dict[str, Any], found: "Transition") -> None:
    """Write the plot, its numbers, and the strip of images."""
    from textebm import pictures, png

    if chosen.plot is not None:
        pictures.transition(details, Path(chosen.plot))
        say(f"plot: {chosen.plot}")
    if chosen.csv is not None:
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("series", "x", "value", "low", "high"))
        rows.writerows(pictures.numbers(details))
        with writing(chosen.csv, "--csv"):
            Path(chosen.csv).write_text(table.getvalue(), encoding="utf-8")
    if found.images is not None and len(found.images):
        strip = chosen.strip or "transition.png"
        with writing(strip, "--strip"):
            png.write_grid(Path(strip), found.images.flatten(0, 1), len(found.marks))
        say(f"a row a chain, a column a mark: {strip}")


# ---- for people


def describe(result: dict[str, Any]) -> str:
    """The result for people."""
    details, (low, high) = result["details"], result["interval"]
    parts = [
        f"energy changes by {result['score']:.2f} nats in {details['steps']:,} steps (95 % interval {low:.2f} to "
        f"{high:.2f} over {details['chains']:,} chains)",
        details["verdict"]["words"],
        *_table(details),
        *_chains(details),
    ]
    if details["quality"] is not None:
        parts += _quality(details["quality"], details["short_run_steps"])
    if details["diagnostics"] is not None:
        parts += _diagnosed(details["diagnostics"])
    return "\n".join([*parts, f"\nsignature: {result['signature']}"])


def _table(details: dict[str, Any]) -> list[str]:
    """Figures at the marks, mean and standard deviation over chains."""
    names = ("energy", "norm", "displacement")
    lines = ["", f"{'step':>6}" + "".join(f"{name:>20}" for name in names)]
    for mark in details["marks"]:
        cells = [f"{details[name]['mean'][mark]:.2f} ± {details[name]['sd'][mark]:.2f}" for name in names]
        lines.append(f"{mark:>6}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def _chains(details: dict[str, Any]) -> list[str]:
    """A block a chain, a line a mark: its energy, and of text its sentence."""
    lines = []
    for number, chain in enumerate(details["shown"], start=1):
        lines += ["", f"chain {number}"]
        texts = chain.get("texts") or [""] * len(details["marks"])
        for mark, energy, text in zip(details["marks"], chain["energy"], texts, strict=True):
            lines.append(f"{mark:>6}{energy:>10.2f}  {text}".rstrip())
    return lines


def _quality(quality: dict[str, Any], short: int) -> list[str]:
    real = "" if quality["real"] is None else f"; real text {quality['real']:.2f}"
    lines = ["", f"{quality['metric']} of {quality['samples']:,} samples over prior steps (lower is better{real})"]
    for point in quality["points"]:
        interval = point["interval"]
        between = "" if interval is None else f"  ({interval[0]:.2f} to {interval[1]:.2f})"
        trained = "  as in training" if point["steps"] == short else ""
        lines.append(f"{point['steps']:>6}{point['score']:>12.2f}{between}{trained}")
    return lines


def _diagnosed(found: dict[str, Any]) -> list[str]:
    lines = [""]
    for chains in filter(None, (found["prior"], found["posterior"])):
        of = "" if chains["target"] == "prior" else f" of each of {chains['posteriors']}"
        lines.append(f"{chains['target']}: {chains['chains']:,} chains{of} of {chains['steps']:,} steps")
        for name, title in (("rhat", "R-hat"), ("ess", f"effective samples of {chains['draws']:,}")):
            cells = [f"{figure} {_spread(spread)}" for figure, spread in chains[name].items()]
            lines.append(f"  {title}: {', '.join(cells)}")
        if chains["acceptance"] is not None:
            shares = (chains["short_run_acceptance"], chains["long_run_acceptance"])
            short, long = ("-" if share is None else f"{share:.3f}" for share in shares)
            lines.append(f"  acceptance of its steps by Metropolis: {short} in the short run, {long} in the long run")
        bound, why_not = chains["kl_bound"], chains["kl_bound_withheld"]
        lines.append(
            f"  kl_bound: none ({why_not})"
            if bound is None
            else f"  kl_bound, KL of the short run from the {chains['target']} is at most: {bound['value']:.2f} ± "
            f"{bound['standard_error']:.2f} nats"
        )
    if found["posterior_withheld"] is not None:
        lines.append(f"posterior: nothing, {found['posterior_withheld']}")
    beside = found["short_and_long"]
    energies = ", ".join(f"{kind} {energy:.2f}" for kind, energy in beside["energy"].items())
    return [
        *lines,
        f"short-run samples against ends of {beside['long_steps']:,} steps, {beside['samples']:,} each: MMD² "
        f"{beside['mmd']['squared']:.4f} (p = {beside['mmd']['p_value']:.3g}); mean energies: {energies}",
    ]


def _spread(spread: dict[str, float] | None) -> str:
    """The median over posteriors and the worst of them; of a prior one figure."""
    if spread is None:
        return "-"
    median, worst = (f"{spread[key]:.4g}" for key in ("median", "worst"))
    return median if median == worst else f"{median} (worst {worst})"
