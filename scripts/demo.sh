#!/usr/bin/env bash
# The whole program once, on the embedded corpus: train, validate, generate, FPPL and RPPL. Everything lands in runs/demo.
# Needs `make setup`; takes under 10 minutes on 2 CPU cores, at most 5 of them training. A run that is there is gone on with.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
run=runs/demo

"$python" scripts/experiment.py --config demo --name demo --results "$run" -- --max-minutes 4.5
"$python" -m textebm generate --model "$run" -n 1000 --output "$run/samples.txt"
"$python" -m textebm plot "$run"
"$python" scripts/demo_summary.py "$run"
