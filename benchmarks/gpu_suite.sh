#!/bin/sh
# Measure everything on one GPU, most valuable first, within a time budget.
#
#     benchmarks/gpu_suite.sh OUT [BUDGET_S] [OPTION…]     # BUDGET_S: 480 if not given
#
# Needs Python 3.12 with torch, transformers, accelerate, peft, safetensors, pyarrow, fsspec and
# pytest; no network. The other packages come from the wheels that benchmarks/gpu_wheels.sh fetched
# (WHEELS names their folder). OUT gets at most eight files, rewritten after every case, so that a
# run that is cut off loses only the case in progress. Exit status 1 if no case succeeded.
set -eu
[ $# -ge 1 ] || { sed -n '2,10p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
out=$1
budget=${2:-480}
[ $# -ge 2 ] && shift 2 || shift 1
python=${PYTHON:-python3}
wheels=${WHEELS:-$here/gpu/wheels}
mkdir -p "$out"
present='import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("diffusers", "pydantic", "tenacity"))))'
if ! "$python" -c "$present"; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$site" "$wheels"/*.whl
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
PYTHONPATH=$here/..:$here:$here/training:$here/serving${PYTHONPATH:+:$PYTHONPATH}
PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
HF_HUB_OFFLINE=1
PYTHONUNBUFFERED=1
export PYTHONPATH PYTORCH_CUDA_ALLOC_CONF HF_HUB_OFFLINE PYTHONUNBUFFERED
exec "$python" -m gpu.suite --out "$out" --budget "$budget" "$@"
