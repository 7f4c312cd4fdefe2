#!/bin/bash
# Runs the native engine under AddressSanitizer with LeakSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
#
#     benchmarks/sanitize.sh FOLDER             builds in FOLDER (about 300 MB); a second run compiles what has changed
#
# One line of verdict a part, reports and output in FOLDER/log; exit code 1 when there is a finding or a part failed.
# PYTHON=... is the interpreter (default: the repository's .venv), JOBS=N compiles N files at a time (default: 1).
#
# Everything runs in a copy of the working tree, so the installed module stays as it is: the sanitised one lies in the
# copy's kiloq/native, and PYTHONPATH puts the copy first. Optimisation is -O1, which compiles the kernels in a quarter of
# the time and keeps their stacks readable.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(dirname "$here")
out=${1:?usage: benchmarks/sanitize.sh FOLDER}
mkdir -p "$out"
out=$(cd "$out" && pwd)
tree="$out/tree"
python=$(command -v "${PYTHON:-$repo/.venv/bin/python}")
cxx=${CXX:-g++}
checks=(-g -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all)
rm -rf "$tree" "$out/log" "$out/site"
mkdir -p "$tree" "$out/log" "$out/site" "$out/checks"
findings=0

# verdict NAME STATUS: what the sanitisers reported in FOLDER/log/NAME.PID, and whether the part itself succeeded. Of
# leaks only those count that were allocated by our module: the interpreter frees little of its own at exit.
verdict() {
    local reports leaks
    reports=$(find "$out/log" -name "$1.*" -exec cat {} + |
        grep -cE 'ERROR: AddressSanitizer:|runtime error:|WARNING: ThreadSanitizer:' || true)
    leaks=$(find "$out/log" -name "$1.*" -exec cat {} + |
        awk 'BEGIN { RS = "" } / leak of / && /kiloq\/native|nanobind/ { ++n } END { print n + 0 }')
    if [ "$reports" = 0 ] && [ "$leaks" = 0 ] && [ "$2" = 0 ]; then
        echo "$1: clean"
    else
        echo "$1: FAILED with $reports reports, $leaks leaks, exit code $2: see $out/log/$1.*"
        findings=1
    fi
}

# part NAME COMMAND...: runs one part, its output in FOLDER/log/NAME.txt.
part() {
    local name=$1 status
    shift
    set +e # `part || ...` would switch it off inside as well, and a part would go on after its first failure
    (
        set -e
        "$@"
    ) >"$out/log/$name.txt" 2>&1
    status=$?
    set -e
    verdict "$name" "$status"
}

# in_python NAME ARGUMENTS...: the interpreter, which is not sanitised itself, on the copy. Its own allocator would hide
# what happens inside its pools. libstdc++ must be there before ASan looks for the function that throws;
# and tests of Ctrl-C want the signal, which a shell ignores for what it runs in the background.
in_python() {
    local name=$1 log="log_path=$out/log/$1"
    shift
    (cd "$tree" && env --default-signal=INT PYTHONPATH="$out/site:$tree" PYTHONMALLOC=malloc \
        LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS="$log:detect_leaks=${LEAKS:-1}:quarantine_size_mb=16" LSAN_OPTIONS=exitcode=0 \
        UBSAN_OPTIONS="$log:print_stacktrace=1" "$python" "$@")
}

copy_tree() {
    git -C "$repo" ls-files -z --cached --others --exclude-standard |
        tar -C "$repo" --null --ignore-failed-read -T - -cf - | tar -C "$tree" -xf -
    [ ! -e "$repo/../shared" ] || ln -sfn "$repo/../shared" "$out/shared"
    local lists="$tree/kiloq/native/src/CMakeLists.txt"
    grep -q 'PRIVATE -O3' "$lists"
    sed -i 's/PRIVATE -O3/PRIVATE -O1/' "$lists"
    # An editable installation of kiloq would come before PYTHONPATH.
    echo 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "") + type(f).__module__]' \
        >"$out/site/sitecustomize.py"
}

build_module() {
    if [ ! -x "$out/tools/bin/cmake" ]; then
        python3 -m venv "$out/tools"
        "$out/tools/bin/python" -m pip install --quiet cmake ninja "$(grep -o 'nanobind==[0-9.]*' "$repo/pyproject.toml")"
    fi
    local nanobind
    nanobind=$("$out/tools/bin/python" -m nanobind --cmake_dir)
    PATH="$out/tools/bin:$PATH" CXX="$cxx" CXXFLAGS="${checks[*]}" cmake -S "$tree" -B "$out/build" -G Ninja \
        -DCMAKE_BUILD_TYPE=Debug -Dnanobind_DIR="$nanobind" -DPython_EXECUTABLE="$python"
    "$out/tools/bin/cmake" --build "$out/build" -j "${JOBS:-1}"
    cp "$out"/build/kiloq/native/src/_native*.so "$tree/kiloq/native/"
    in_python build -c 'import sys; from kiloq.native import _native; assert _native.__file__.startswith(sys.argv[1])' "$tree"
}

# kernels_check.cpp by the tests' own builder; it links statically and optimises fully, which sanitisers do not want.
build_kernels() {
    printf '%s\n' '#!/bin/bash' 'for a; do shift; case $a in -static | -O3) ;; *) set -- "$@" "$a" ;; esac; done' \
        "exec $cxx -O1 ${checks[*]} \"\$@\"" >"$out/checks/compiler"
    chmod +x "$out/checks/compiler"
    (cd "$tree/tests" && "$python" -c 'import os, sys; from pathlib import Path
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])  # the builder compiles on every core it may use
from kernels_build import build, instruction_sets
build(sys.argv[1] + "/compiler", instruction_sets(), Path(sys.argv[1]))' "$out/checks" "${JOBS:-1}")
}

run_kernels() {
    local isa
    for isa in $("$out/checks/kernels_check" --paths); do
        KILOQ_CPU=$isa "$out/checks/kernels_check"
    done
}

# check_threads FLAGS...: threads_check.cpp, with addresses where ThreadSanitizer wants them.
check_threads() {
    "$cxx" -std=c++20 -O1 -g -pthread "$@" -I"$tree/kiloq/native/src" "$tree/tests/native/threads_check.cpp" \
        "$tree/kiloq/native/src/threads.cpp" -o "$out/checks/threads_check"
    setarch -R "$out/checks/threads_check"
}

# Left out: tests that compile (their programs run above), that measure memory and idle time, which sanitisers change, and
# whole runs of the portable path, which is minutes slow without optimisation (its kernels are checked above).
exits=end_in_the_middle_of_a_step # forks while threads work: what those held is lost to the child, which is no leak
tests=(
    tests/native tests/generate/test_native_load.py tests/generate/test_engine.py tests/generate/test_speculate.py
    --ignore tests/native/test_kernels.py --ignore tests/native/test_neon.py
    -k "not team_of_threads and not asleep and not leave_nothing and not loading_streams and not portable and not $exits"
)

part copy copy_tree
part build build_module
[ "$findings" = 0 ] || exit 1
part kernels-build build_kernels
part kernels run_kernels
part threads-asan check_threads "${checks[@]}"
part threads-tsan check_threads -fsanitize=thread
part leaks in_python leaks benchmarks/leaks.py --requests 300 --out "$out/leaks.json"
LEAKS=0 part exit in_python exit -m pytest -q -p no:cacheprovider tests/native/test_threads.py -k "$exits"
part tests in_python tests -m pytest -q -p no:cacheprovider -o timeout=600 "${tests[@]}"
exit "$findings"
