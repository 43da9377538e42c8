#!/usr/bin/env bash
# Prints what steps, ranking and a run cost on this machine's GPU, or on its CPU where there is none, which the table says.
# Needs no Ray. SIZE: of the made data. DATA: a prepared data set, to train on with defaults, such as MovieLens 1M.
# Further arguments go to `python -m benchmarks gpu`.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m benchmarks gpu --device auto --size "${SIZE:-tiktok}" ${DATA:+--data "$DATA"} "$@"
