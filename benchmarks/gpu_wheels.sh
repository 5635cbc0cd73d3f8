#!/bin/sh
# Fetch the wheels that a bare GPU machine lacks: seven, about 9 MB, for CPython 3.12 on x86-64.
#
#     benchmarks/gpu_wheels.sh [FOLDER]        # default: benchmarks/gpu/wheels
#
# Run it on a machine with a package index, copy the repository and the folder to the GPU machine,
# and run benchmarks/gpu_suite.sh there. The versions are those of constraints.txt.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/gpu/wheels}
python=${PYTHON:-python3}
mkdir -p "$folder"
"$python" -m pip download --quiet --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp --abi cp312 --abi none \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --constraint "$here/../constraints.txt" --dest "$folder" \
    diffusers pydantic pydantic_core annotated_types typing_inspection tenacity importlib_metadata
count=$(ls "$folder" | grep -c '\.whl$')
size=$(du -sk "$folder" | cut -f1)
echo "$count wheels, $size KiB, in $folder"
[ "$count" -eq 7 ] && [ "$size" -le 10240 ]
