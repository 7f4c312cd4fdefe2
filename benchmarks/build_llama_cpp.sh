#!/bin/sh
# Builds llama.cpp's shared library for exactly this machine (AVX-512, AMX, whatever it has) from the source inside the
# PyPI package llama-cpp-python, because the prebuilt wheels stop at AVX2 and published ratios must not profit from that.
#
#     benchmarks/build_llama_cpp.sh FOLDER      writes FOLDER/lib/llama_shim.so; a second run is a no-op
#
# Needs python3 with venv, a C++ compiler, about 1 GB of disk. JOBS=N compiles N files at a time (default: all cores).
set -eu

VERSION=0.3.36
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build_llama_cpp.sh FOLDER}
mkdir -p "$out"
out=$(cd "$out" && pwd)
stamp="$out/lib/VERSION"
if [ "$(cat "$stamp" 2>/dev/null)" = "llama-cpp-python $VERSION" ]; then
    echo "$out/lib/llama_shim.so is there already ($VERSION)" >&2
    exit 0
fi

# pip asks a source package for its metadata before it keeps it, which needs the package's build tool.
[ -x "$out/tools/bin/python" ] || python3 -m venv "$out/tools"
"$out/tools/bin/python" -m pip install --quiet scikit-build-core cmake ninja
"$out/tools/bin/python" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation \
    --dest "$out" "llama-cpp-python==$VERSION"
tar -xzf "$out/llama_cpp_python-$VERSION.tar.gz" -C "$out"
source="$out/llama_cpp_python-$VERSION/vendor/llama.cpp"

# GCC before 14 does not know that AMX's tile configuration is read from memory and drops the stores that make it: the
# first tile instruction is then illegal (ggml-org/llama.cpp pull request 26954). A barrier keeps the stores.
mmq="$source/ggml/src/ggml-cpu/amx/mmq.cpp"
grep -q 'asm volatile.*&tc' "$mmq" ||
    sed -i 's/^\( *\)_tile_loadconfig(&tc);/\1__asm__ volatile("" : : "r"(\&tc) : "memory");\n&/' "$mmq"

PATH="$out/tools/bin:$PATH"
cmake -S "$source" -B "$out/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_CURL=OFF >&2
cmake --build "$out/build" --target llama -j "${JOBS:-$(nproc)}" >&2

mkdir -p "$out/lib"
cp -P "$out"/build/bin/*.so* "$out/lib/"
${CC:-cc} -O2 -shared -fPIC -Wall -Wextra -I "$source/include" -I "$source/ggml/include" "$here/llama_shim.c" \
    -o "$out/lib/llama_shim.so" -L "$out/lib" -lllama -Wl,-rpath,'$ORIGIN'
echo "llama-cpp-python $VERSION" >"$stamp"
echo "$out/lib/llama_shim.so" >&2
