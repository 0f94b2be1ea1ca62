"""Print what the demo run learned, beside a dozen of its sentences; exit with 1 if it learned too little.

python scripts/demo_summary.py runs/demo
"""

import json
import sys
from pathlib import Path
from typing import Any

SENTENCES = 12


def checks(result: dict[str, Any]) -> dict[str, bool]:
    """What the run must have learned, each with whether it did."""
    valid, unigram = result["valid"], result["unigram_perplexity"]
    prior, reconstruction = valid["prior_perplexity"], valid["reconstruction_perplexity"]
    return {
        "under prior samples, perplexity is less than half an add-one unigram model's": prior < unigram / 2,
        "reconstruction perplexity is below that": reconstruction < prior,
        "the EBM prior's samples are ahead of the Gaussian's": prior < valid["gaussian_perplexity"],
    }


def main(run: Path) -> int:
    """Print the summary of a run; returns the exit code."""
    result = json.loads((run / "demo.json").read_text(encoding="utf-8"))
    valid = result["valid"]
    rows = [
        ("add-one unigram model", result["unigram_perplexity"]),
        ("z from the reference Gaussian", valid["gaussian_perplexity"]),
        ("z from the EBM prior", valid["prior_perplexity"]),
        ("z from the posterior (reconstruction)", valid["reconstruction_perplexity"]),
    ]
    print(f"\n{result['steps']} learning steps, {result['minutes']} minutes. Perplexity of the validation split:")
    for name, perplexity in rows:
        print(f"  {name:40}{perplexity:8.1f}")
    print("\nPerplexity by language models of text (lower is better):")
    for metric in ("fppl", "rppl"):
        score = result[metric]
        real = score["details"]["real_row"]["perplexity"]
        print(f"  {metric.upper():6}{score['score']:8.1f}   (real text: {real:.1f})   {score['signature']}")
    print("\nGenerated sentences:")
    for sample in result["samples"][:SENTENCES]:
        print(f"  | {sample['text']}")
    print(f"\nAll samples: {run}/samples.txt   curves: {run}/curves.png   figures: {run}/demo.json\n")
    outcome = checks(result)
    for what, held in outcome.items():
        print(f"  {'yes' if held else 'NO '}  {what}")
    return 0 if all(outcome.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
