#!/bin/sh
# The ten longest modules and the ten longest functions. Something to look at, never a gate: it does not fail.
CDPATH='' cd -- "$(dirname "$0")/.." || exit 0
. ./scripts/env.sh
for python in .venv/bin/python python3.13 python3.12 python3.11 python3; do
    "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    "$python" -I - core master agent frameworks cli simulation <<'PROGRAM'
import ast
import sys
from pathlib import Path

modules, functions = [], []
for path in sorted(path for folder in sys.argv[1:] for path in Path(folder).rglob("*.py")):
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError) as problem:
        print(f"left out {path}: {problem}")
        continue
    modules.append((len(source.splitlines()), str(path)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}"))
for title, found in (("modules", modules), ("functions", functions)):
    print(f"the longest {title}, in lines")
    for lines, name in sorted(found, reverse=True)[:10]:
        print(f"  {lines:5}  {name}")
PROGRAM
    exit 0
done
echo 'no Python 3.11 or newer found; nothing to show'
exit 0
