#!/bin/sh
# Stages the Python package with the native module that the workspace built, and runs its tests and examples/chat.py.
# No second build of the dependencies; `pip install .` is what builds a wheel.
# usage: swarmllm-py/tests/run.sh [DIRECTORY OF THE LIBRARIES] [PYTEST ARGUMENTS...]     (default: target/debug)
# PYTHON is an interpreter that has pytest (default: the one of target/venv).
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
libraries=$(cd "${1:-$root/target/debug}" && pwd)
[ $# -eq 0 ] || shift
python=${PYTHON:-$root/target/venv/bin/python}
stage=$root/target/python
export PYTHONPATH="$stage"

case $(uname) in
Darwin) native=lib_swarmllm.dylib ;;
*) native=lib_swarmllm.so ;;
esac

echo "== staging the package in $stage"
rm -rf "$stage"
mkdir -p "$stage"
cp -R "$root/swarmllm-py/python/swarmllm" "$stage/"
cp "$libraries/$native" "$stage/swarmllm/_swarmllm.abi3.so"

echo "== tests"
cd "$root"
"$python" -m pytest -q -c pyproject.toml "$@"

if [ -n "${SWARMLLM_TEST_SMOLLM2:-}" ]; then
    echo "== the example"
    data=$(mktemp -d)
    trap 'rm -rf "$data"' EXIT
    SWARMLLM_DATA_DIR=$data "$python" examples/chat.py "$SWARMLLM_TEST_SMOLLM2"
fi
