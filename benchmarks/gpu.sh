#!/usr/bin/env bash
# Speed and memory on one GPU, in at most ten minutes: benchmarks/gpu.sh [--size tiny --device cpu] [--out FILE].
# The folder that holds countgen must be installed, or be the one that this script's folder lies in.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m benchmarks.gpu "$@"
