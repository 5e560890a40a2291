#!/usr/bin/env bash
# Builds llama.cpp's server for the benchmark from the source in the Python package llama-cpp-python, once, outside the
# tree. Prints the binary's path.
#
# usage: llama_server.sh CACHE PYTHON
set -euo pipefail

VERSION=0.3.36
CACHE=$1
PYTHON=$2
BINARY="$CACHE/llama-server-$VERSION-without-amx"

if [ ! -x "$BINARY" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    echo "make: fetching and building llama.cpp's server once; takes about ten minutes on two cores" >&2
    "$PYTHON" -m pip download --quiet --no-deps --no-binary :all: --dest "$work" "llama-cpp-python==$VERSION" >&2
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
    # Native build with llama.cpp's own threads, which are faster than OpenMP's. Without AMX: this version's AMX kernels crash
    # the server at its first step with an illegal instruction (`tilezero`), also on machines with working AMX.
    without=''
    [ "$(uname -m)" != x86_64 ] || without='-mno-amx-int8 -mno-amx-bf16 -mno-amx-tile'
    cmake -S "$work/llama_cpp_python-$VERSION/vendor/llama.cpp" -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DCMAKE_C_FLAGS="$without" -DCMAKE_CXX_FLAGS="$without" \
        >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    cmake --build "$work/build" --target llama-server -j "$(nproc)" >"$work/log" 2>&1 || { tail -50 "$work/log" >&2; exit 1; }
    mkdir -p "$CACHE"
    cp "$work/build/bin/llama-server" "$BINARY.part"
    mv "$BINARY.part" "$BINARY"
fi
echo "$BINARY"
