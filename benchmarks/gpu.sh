#!/usr/bin/env bash
# Prints what steps and ranking cost on this machine's GPU, or on its CPU where there is none, which the table says.
# Needs no Ray. SIZE: of the made data; further arguments go to `python -m benchmarks gpu`.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m benchmarks gpu --device auto --size "${SIZE:-tiktok}" "$@"
