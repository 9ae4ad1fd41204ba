#!/bin/sh
# Runs the Python of .venv with these arguments, in the root of the tree and without stray variables.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. ./scripts/env.sh
exec .venv/bin/python "$@"
