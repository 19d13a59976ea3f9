#!/usr/bin/env bash
# All that only a GPU can show, within 9 minutes; see gpu.py. On a machine without a network, from the project's root:
#     source .offline/env.sh && scripts/benchmarks/gpu.sh > $OUT/log 2>&1
set -euo pipefail
exec "${PYTHON:-python3}" -u "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
