#!/usr/bin/env bash
# What `make demo` runs: train a diffusion model on real handwriting, draw a grid, score it. Prints every command.
set -euo pipefail
bin=$1 workdir=$2
say() { printf '\n$ %s\n' "$*"; "$@"; }

say "$bin/gen-jax" train --config digits --workdir "$workdir"
say "$bin/gen-jax" sample --workdir "$workdir" --guidance 2 --out "$workdir/grid"
say "$bin/gen-jax" evaluate --workdir "$workdir" --out "$workdir/scores.json"
printf '\npicture    %s\nscores     %s\nlog        %s\ncheckpoint %s\n' \
  "$workdir/grid.png" "$workdir/scores.json" "$workdir/metrics.jsonl" "$workdir/checkpoints"
printf '\nGo on from there, for instance:\n  %s\n  %s\n' \
  "$bin/gen-jax sample --workdir $workdir --labels 3,1,4,1,5,9 --guidance 3 --steps 25 --out $workdir/pi" \
  "$bin/gen-jax train --config digits:eps --workdir runs/eps --config.train.steps=600"
