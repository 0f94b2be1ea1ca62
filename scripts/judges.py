"""Rows of texts under several protocols, in one JSON file: real text, a plain language model, a model of textebm.

    python scripts/judges.py --data ptb --protocols kenlm5 fang2019 --plain-lm lm.txt --model runs/ptb-small

Every score is what `textebm fppl` and `textebm rppl` print. --plain-lm draws sentences from the LSTM judge of the real
training split itself, at temperature 1 and as many as there are training sentences, unless the file is there already;
--given names other texts of that kind; --model is a run, whose samples are drawn as each protocol prescribes. The real
row stands beside every score. The file is written anew after each row, so that what is measured is kept.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from textebm import checkpoint, hardware, whole_files
from textebm.data.registry import resolve
from textebm.lm_eval import Corpus, Vocabulary
from textebm.lm_eval.judging import JudgeOptions, sample_judge, train_judge
from textebm.lm_eval.protocols import LSTM_SENTENCE, PROTOCOLS

METRICS = ("fppl", "rppl")
PLAIN_LM = "plain LSTM language model"


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ptb", help="named corpus")
    parser.add_argument("--data-dir", help="folder with local copies of named corpora; else TEXTEBM_DATA")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["kenlm5"])
    parser.add_argument(
        "--fppl-only", nargs="*", choices=PROTOCOLS, default=[], help="protocols whose RPPL is left out"
    )
    parser.add_argument("--plain-lm", type=Path, help="file for sentences of the LSTM judge itself")
    parser.add_argument("--given", nargs="*", default=[], metavar="NAME=FILE", help="texts sampled at temperature 1")
    parser.add_argument("--model", help="run folder of a model")
    parser.add_argument("--model-name", default="a textebm model", help="what the model's row is called")
    parser.add_argument("--judge-epochs", type=int, help="end the training of neural judges early")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/judges-ptb.json"))
    chosen = parser.parse_args()
    texts = {PLAIN_LM: str(chosen.plain_lm)} if chosen.plain_lm else {}
    texts |= dict(given.split("=", 1) for given in chosen.given)
    if chosen.plain_lm and not chosen.plain_lm.exists():
        draw_plain_lm(chosen)
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    result = {
        "name": chosen.output.stem,
        "command": described(chosen),
        "seed": chosen.seed,
        "commit": hardware.commit(),
        "hardware": hardware.hardware_class(),
        "versions": hardware.versions(),
        "rows": rows,
    }
    for protocol in chosen.protocols:
        real: dict[str, Any] = {"name": "real text", "protocol": protocol}
        for name in [*texts, *([chosen.model_name] if chosen.model else [])]:
            row: dict[str, Any] = {"name": name, "protocol": protocol}
            if name not in texts:
                row["model"] = described_model(chosen.model)
            for metric in METRICS:
                if metric == "rppl" and protocol in chosen.fppl_only:
                    continue
                row[metric] = score(metric, protocol, chosen, texts.get(name))
                real[metric] = row[metric]["details"]["real_row"]
            rows.append(row)
            result["minutes"] = round((time.monotonic() - started) / 60, 1)
            write(chosen.output, result)
        rows.append(real)
        write(chosen.output, result)
    print(chosen.output)


def draw_plain_lm(chosen: argparse.Namespace) -> None:
    """Sentences of the LSTM judge of the real training split, which is trained unless it is kept from before."""
    corpus = resolve(chosen.data, chosen.data_dir)
    train, valid = (Corpus(partial(corpus.sentences, split), split) for split in ("train", "valid"))
    options = JudgeOptions(data=corpus.name, epochs=chosen.judge_epochs)
    vocabulary = Vocabulary.from_sentences(train)
    judge = train_judge(LSTM_SENTENCE, train, valid, vocabulary, options, chosen.seed)
    sentences = sample_judge(judge, LSTM_SENTENCE, train, sum(1 for _ in train), chosen.seed, options)
    whole_files.write_text(chosen.plain_lm, "".join(f"{sentence}\n" for sentence in sentences))


def score(metric: str, protocol: str, chosen: argparse.Namespace, text: str | None) -> dict[str, Any]:
    """The score of a given text, or of the model, as the command prints it."""
    words = [metric, "--protocol", protocol, "--data", chosen.data, "--seed", str(chosen.seed)]
    words += ["--data-dir", chosen.data_dir] if chosen.data_dir else []
    words += ["--samples", text, "--decoding", "sample-t1"] if text else ["--model", chosen.model]
    if chosen.judge_epochs and PROTOCOLS[protocol].judge == "lstm":
        words += ["--judge-epochs", str(chosen.judge_epochs)]
    done = subprocess.run([sys.executable, "-m", "textebm", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def described_model(run: str) -> dict[str, Any]:
    """How far the model was trained."""
    config, progress = checkpoint.read_run(checkpoint.find_model(run)[0])
    return {"data": config.data, "seed": config.seed, "steps": progress.step, "epochs": progress.epoch}


def described(chosen: argparse.Namespace) -> str:
    """The command as one would type it, without the places of this machine."""
    names = [given.split("=", 1)[0] for given in chosen.given]
    words = ["python scripts/judges.py --data", chosen.data, "--protocols", *chosen.protocols]
    words += ["--fppl-only", *chosen.fppl_only] if chosen.fppl_only else []
    words += ["--plain-lm FILE"] if chosen.plain_lm else []
    words += ["--given", *(f'"{name}=FILE"' for name in names)] if names else []
    words += ["--model RUN"] if chosen.model else []
    words += [f"--judge-epochs {chosen.judge_epochs}"] if chosen.judge_epochs else []
    return " ".join([*words, f"--seed {chosen.seed}"])


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
