#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than ten minutes: build, tests, memory and race checks, counters, benches.
#
#     bench/device.sh                                all of it; what comes back is in $OUT (default build/device)
#     SECTIONS="build search" bench/device.sh        some of it, in the order below
#     SECTIONS="kernels" SITE=build/site bench/device.sh    without a new build, where an earlier call left one there
#
# $OUT gets summary.txt, what each section was and how it ended, and device.tar.gz, all logs and records: a record
# NAME-cuda.json belongs into bench/results, for python -m bench.report. Sections that no time is left for (LIMIT seconds
# in all, default 570) and tools that are missing or not permitted are said in the summary, not counted as passed.
#
# Needs nvcc, and a Python that already has PyTorch with CUDA, pytest, scikit-build-core, pybind11, CMake and ninja; the
# benches OpenCV and scikit-learn. Nothing is downloaded. The exit status is that of the build, the tests and the
# sanitizers where these can run.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-build/device}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-570}
SECTIONS=${SECTIONS:-build tests memcheck racecheck search kernels counters profile compiled peers scale slicing reproduce}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
scratch=$(mktemp -d)
SITE=${SITE:-$scratch/site}
mkdir -p "$SITE" "$scratch/out"
SITE=$(cd "$SITE" && pwd)
logs=$scratch/out
summary=$OUT/summary.txt
export PYTHONPATH="$SITE" PYTHONUNBUFFERED=1
failed=0
: > "$summary"

finish() {
    cp "$summary" "$logs"
    tar -czf "$OUT/device.tar.gz" -C "$logs" .
    rm -rf "$scratch"
}
trap finish EXIT

wanted() { [[ " $SECTIONS " == *" $1 "* ]]; }
say() { printf '%-12s %s\n' "$1" "$2" | tee -a "$summary"; }

# section NAME SECONDS COMMAND...: its output goes to NAME.log, its fate to the summary. 124: its time was up.
section() {
    local name=$1 seconds=$2 start=$SECONDS left=$((LIMIT - SECONDS)) status
    shift 2
    [ $left -ge 10 ] || { say "$name" "skipped: no time left; repeat with SECTIONS=\"$name\""; return 0; }
    timeout $((seconds < left ? seconds : left)) "$@" > "$logs/$name.log" 2>&1
    status=$?
    say "$name" "status $status, $((SECONDS - start)) s: $(tail -n 1 "$logs/$name.log" | cut -c 1-110)"
    return $status
}

bench() {
    local name=$1 record=$2 seconds=$3
    shift 3
    section "$record" "$seconds" "$PYTHON" -m "bench.$name" --device cuda --out "$logs/$record-cuda.json" "$@"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$logs/gpu.csv" 2>&1

if wanted build; then
    section build 180 "$PYTHON" -m pip install -v --no-index --no-build-isolation --no-deps --upgrade --target "$SITE" . \
        -C cmake.define.COMPDX_CUDA=ON -C cmake.define.COMPDX_CUDA_RESOURCES=ON || exit 1
    section resources 30 "$PYTHON" tools/cuda_resources.py "$logs/build.log"
fi
# Without a device every GPU test would be skipped, and that is not what a pass here means.
section device 30 "$PYTHON" -c 'import compdx.ops as ops; n = ops.cuda_device_count(); print(n, "devices"); raise SystemExit(n == 0)' \
    || exit 1

# The tests and both sanitizers look for errors, not for time: they run side by side, before anything is measured. The
# sanitizers slow every memory access down by an order of magnitude or two, so they get small searches.
sanitized() {
    local tool=$1
    command -v compute-sanitizer > /dev/null || { say "$tool" "skipped: compute-sanitizer is not installed"; return 0; }
    section "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 3 --kernel-name kernel_substring=kernel \
        "$PYTHON" -m pytest -q -m gpu tests/test_cuda_gpu.py -k "small or pixel or (every_group and float32 and NHWC)" && return 0
    grep -q 'Device not supported' "$logs/$tool.log" || return 1
    say "$tool" "not permitted: compute-sanitizer refuses this device"
}
mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py)
checks=()
for tool in memcheck racecheck; do
    wanted $tool && { sanitized $tool & checks+=($!); }
done
if wanted tests; then
    section tests 150 "$PYTHON" -m pytest -q -m gpu --junitxml="$logs/tests.xml" "${files[@]}" || failed=1
fi
for check in "${checks[@]}"; do
    wait "$check" || failed=1
done

wanted search && bench search search 140
wanted kernels && bench kernels kernels 120
if wanted counters; then
    if command -v ncu > /dev/null; then
        section counters 60 ncu --clock-control none --kernel-name 'regex:(step|mutate|judge)' --launch-skip 2 --launch-count 12 \
            --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
            --section WarpStateStats "$PYTHON" -m bench.kernels --device cuda --trace --shapes 1x28x28 3x32x32
        ! grep -qE 'ERR_NVGPUCTRPERM|LibraryNotLoaded' "$logs/counters.log" \
            || say counters "not permitted: ncu cannot read the counters of this device"
    else
        say counters "skipped: ncu is not installed"
    fi
fi
wanted profile && bench profile profile 40
wanted compiled && bench search search-compiled 120 --compile --pairs lenet5 resnet20 resnet18 --chains 1024 8192
wanted peers && bench peers peers 60
wanted scale && bench scale scale 60
wanted slicing && bench slicing slicing 60
# CompD's experiments, where CIFAR-10 was brought along: COMPDX_DATA holds cifar10/train.parquet and test.parquet.
if wanted reproduce && [ -d "${COMPDX_DATA:-}/cifar10" ]; then
    for scheme in prune quant; do
        section "reproduce-$scheme" 240 "$PYTHON" -m compdx reproduce compd --data "$COMPDX_DATA/cifar10" --scheme "$scheme" \
            --scale small --device cuda --out "$scratch/study-$scheme" && cp "$scratch/study-$scheme/tables.json" "$logs/compd-$scheme.json"
    done
fi
exit $failed
