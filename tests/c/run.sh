#!/bin/sh
# Compiles the C contract test against include/ and runs it with the shared and the static library, and under valgrind.
#
# usage: tests/c/run.sh [LIBRARY DIRECTORY]     (default: target/debug)
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
libraries=$(cd "${1:-$root/target/debug}" && pwd)
out=$root/target/c-tests
cc=${CC:-cc}
cxx=${CXX:-c++}
flags="-g -std=c11 -Wall -Wextra -Werror -I$root/include"
mkdir -p "$out"

case $(uname) in
Darwin) system="-lc++ -framework Accelerate -framework Foundation -framework Security -framework SystemConfiguration" ;;
*) system="-lstdc++ -lm -lpthread -ldl -lrt" ;;
esac

echo "== the header compiles as C++17, and by itself as C11"
"$cxx" -std=c++17 -Wall -Wextra -Werror -I"$root/include" -fsyntax-only "$root/tests/c/header.cc"
echo '#include "swarmllm.h"' | "$cc" $flags -fsyntax-only -x c -

echo "== shared library"
"$cc" $flags "$root/tests/c/contract.c" -L"$libraries" -lswarmllm -Wl,-rpath,"$libraries" -o "$out/contract-shared"
"$out/contract-shared"

echo "== static library"
"$cc" $flags "$root/tests/c/contract.c" "$libraries/libswarmllm.a" $system -o "$out/contract-static"
"$out/contract-static" offline

echo "== the example compiles"
"$cc" $flags "$root/examples/chat.c" -L"$libraries" -lswarmllm -Wl,-rpath,"$libraries" -o "$out/chat"

if command -v valgrind >/dev/null; then
    echo "== valgrind"
    valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \
        "$out/contract-shared" offline
else
    echo "== valgrind is not installed: skipped"
fi
