#!/usr/bin/env bash
# Everything that needs a GPU, in one go of a few minutes: build, tests, memory and race checks, benches.
#
#     bench/device.sh        logs and records go to $OUT (default build/device)
#
# Needs nvcc, and a Python that already has PyTorch with CUDA, pytest, scikit-build-core, pybind11, CMake and ninja: nothing is downloaded.
# The exit status is that of the build and the tests. A sanitizer that cannot run here, or a bench that fails, is said in the summary.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-build/device}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$scratch/site" PYTHONUNBUFFERED=1
summary="$OUT/summary.txt"
failed=0
: > "$summary"

# section NAME SECONDS COMMAND...: its output goes to NAME.log, its fate to the summary.
section() {
    local name=$1 seconds=$2 start=$SECONDS status
    shift 2
    timeout "$seconds" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    printf '%-24s status %-4s %4ss  %s\n' "$name" "$status" $((SECONDS - start)) "$(tail -n 1 "$OUT/$name.log" | cut -c 1-120)" \
        | tee -a "$summary"
    return $status
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$OUT/gpu.csv" 2>&1

section build 180 "$PYTHON" -m pip install -v --no-index --no-build-isolation --no-deps --target "$scratch/site" . \
    -C cmake.define.COMPDX_CUDA=ON -C cmake.define.COMPDX_CUDA_RESOURCES=ON || exit 1
# Without a device every GPU test would be skipped, and that is not what a pass here means.
section device 30 "$PYTHON" -c 'import compdx.ops as ops; n = ops.cuda_device_count(); print(n, "devices"); raise SystemExit(n == 0)' \
    || exit 1
[ ! -f tools/cuda_resources.py ] || section resources 30 "$PYTHON" tools/cuda_resources.py "$OUT/build.log"

mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py)
section tests 150 "$PYTHON" -m pytest -q -m gpu --junitxml="$OUT/tests.xml" "${files[@]}" || failed=1

# Small searches: the sanitizers slow every memory access down by an order of magnitude or two.
for tool in memcheck racecheck; do
    section "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 3 --kernel-name kernel_substring=kernel \
        "$PYTHON" -m pytest -q -m gpu tests/test_cuda_gpu.py -k "small or pixel"
done

for bench in bench/*.py; do
    grep -q '"--device"' "$bench" || continue
    name=$(basename "$bench" .py)
    section "bench-$name" 90 "$PYTHON" -m "bench.$name" --device cuda --out "$OUT/$name.json"
done
# CompD's experiments, where CIFAR-10 was brought along: COMPDX_DATA holds cifar10/train.parquet and test.parquet.
if [ -d "${COMPDX_DATA:-}/cifar10" ]; then
    for scheme in prune quant; do
        section "reproduce-$scheme" 240 "$PYTHON" -m compdx reproduce compd --data "$COMPDX_DATA/cifar10" --scheme "$scheme" \
            --scale small --device cuda --out "$scratch/study-$scheme" && cp "$scratch/study-$scheme/tables.json" "$OUT/compd-$scheme.json"
    done
fi
exit $failed
