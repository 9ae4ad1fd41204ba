#!/bin/sh
# Everything that is held without running the product. All checks run; the last lines name those that failed.
set -u
CDPATH='' cd -- "$(dirname "$0")/.." || exit
. ./scripts/env.sh

failed=

check() {
    name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed="$failed $name"
}

check lint .venv/bin/python -m ruff check
check format .venv/bin/python -m ruff format --check
check types .venv/bin/python -m mypy
check imports .venv/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
check layout .venv/bin/python -m pytest -q tests/test_layout.py
if command -v buf >/dev/null 2>&1; then
    check proto buf lint proto --config '{"version":"v2","lint":{"use":["STANDARD"]}}'
fi

if [ -n "$failed" ]; then
    printf '== failed:%s\n' "$failed"
    exit 1
fi
echo '== all checks hold'
