"""`textebm likelihood`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textebm import options
from textebm.commands.terminal import (
    choose_device,
    find_text,
    model_folder,
    parse,
    progress_bar,
    require_text,
    say,
    write,
)

if TYPE_CHECKING:
    from textebm.marginal import Score, Settings


def likelihood(arguments: Sequence[str]) -> int:
    """`textebm likelihood`."""
    chosen = parse(options.Likelihood, "likelihood", arguments)
    from textebm import checkpoint, generation, marginal

    folder = model_folder(chosen)
    config = checkpoint.read_run(folder)[0]
    require_text(config, folder)
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    corpus, text = find_text(folder, tokenizer, chosen.split, chosen.data, chosen.data_dir, chosen.text_field)
    settings = _settings(chosen)
    sentences = min(chosen.n or len(text), len(text))
    with progress_bar(sentences, "sentence") as bar:
        proposer = marginal.make_proposer(model, settings.fit, chosen.proposal)
        found = marginal.estimate(model, text, chosen.seed, settings, sentences, proposer, bar.update)
    facts = {
        "data": corpus.name,
        "scored": chosen.split,
        "test": marginal.text_digest(text, sentences),
        "vocabulary": marginal.vocabulary_digest(tokenizer.get_vocab()),
        **({} if config.text_policy == "as-is" else {"text": config.text_policy}),
    }
    score = marginal.summarise(found, facts, settings, chosen.resamples, chosen.seed)
    for warning in score.details["warnings"]:
        say(f"warning: {warning}")
    if found.withheld is not None:
        say(f"no score: {found.withheld}")
    write(score.to_json() if chosen.format == "json" else _describe(score), chosen.output)
    return 0


def _settings(chosen: options.Likelihood) -> "Settings":
    from textebm.marginal import Settings
    from textebm.model.ais import Plan
    from textebm.model.proposals import Fit

    return Settings(
        samples=chosen.samples,
        fit=Fit(chosen.chains, chosen.chain_steps, chosen.covariance, chosen.widening, chosen.defensive),
        plan=Plan(chosen.ais_chains, chosen.ais_steps, chosen.ais_leapfrogs, chosen.ais_path, chosen.ais_settling),
        sentences_at_once=chosen.sentences_at_once,
    )


def _describe(score: "Score") -> str:
    """A score for people."""
    details = score.details
    lines = [_headline(score), f"{details['sentences']:,} sentences, {details['words']:,} words; {details['bound']}"]
    log_z, importance, parts = (details[key] for key in ("log_normaliser", "importance", "reconstruction"))
    if importance is not None and parts is not None:
        divergence = "-" if parts["kl"] is None else f"{parts['kl']:.2f}"
        effective = importance["effective_samples"]
        lines += [
            f"parts: reconstruction {parts['nll']:.2f}, KL of the posterior from the prior {divergence}",
            f"effective samples of {importance['samples']}: median {effective['median']:.1f}, "
            f"5 % below {effective['5 %']:.1f}",
            "log Z: 0, exactly" if log_z["method"] == "exact" else _describe_log_z(log_z),
        ]
    return "\n".join([*lines, f"signature: {score.signature}"])


def _headline(score: "Score") -> str:
    if score.score is None or score.interval is None or score.perplexity_interval is None:
        return f"marginal NLL withheld: {score.details['withheld']}"
    low, high = score.interval
    lowest, highest = score.perplexity_interval
    return (
        f"marginal NLL {score.score:.2f} nats a sentence (95 % interval {low:.2f} to {high:.2f}), "
        f"perplexity {score.perplexity:.2f} a word ({lowest:.2f} to {highest:.2f})"
    )


def _describe_log_z(log_z: dict[str, object]) -> str:
    runs = []
    for name in ("forward", "reverse"):
        run = log_z[name]
        assert isinstance(run, dict)
        figures = {key: "-" if run[key] is None else f"{run[key]:.2f}" for key in ("value", "standard_error")}
        runs.append(f"{name} {figures['value']} ± {figures['standard_error']} (accepted {run['acceptance']:.2f})")
    return f"log Z: {', '.join(runs)}"
