#!/usr/bin/env bash
# Latent diffusion on `shapes` from nothing: autoencoder, latents, text encoder, embeddings, UNet, scores. Run again, it
# goes on where it was. Usage: experiments/latent_diffusion.sh [BIN [FOLDER]]
set -euo pipefail
# Large pages for what XLA allocates anew in every step: a quarter more steps a second on two cores (docs/benchmarks.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
bin=${1:-.venv/bin} at=${2:-runs/latent_diffusion}
say() { printf '\n$ %s\n' "$*"; local began=$SECONDS; "$@"; printf '(%d s)\n' $((SECONDS - began)); }
ldm=shapes_ldm:vae=$at/vae,clip=$at/clip,latents=$at/latents,text=$at/text

say "$bin/gen-jax" train --config shapes_vae --workdir "$at/vae"
say "$bin/gen-jax" evaluate --workdir "$at/vae" --out "$at/vae/scores.json"
say "$bin/gen-jax" cache --workdir "$at/vae" --out "$at/latents" --config.data.options.size=100_000 \
  --config.data.options.max_objects=2 "--config.data.options.fields=('image', 'captions')"
say "$bin/gen-jax" train --config shapes_clip:objects=2 --workdir "$at/clip"
say "$bin/gen-jax" embed-text --workdir "$at/clip" --config "$ldm" --out "$at/text"
say "$bin/gen-jax" train --config "$ldm" --workdir "$at/ldm"
say "$bin/gen-jax" evaluate --workdir "$at/ldm" --out "$at/ldm/scores.json"
printf '\nscores %s\n' "$at/ldm/scores.json"
