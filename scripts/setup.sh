#!/bin/sh
# Makes .venv ready and says nothing when it already is.
#
#     scripts/setup.sh all     what runs: the programs and what they need (`make demo`)
#     scripts/setup.sh dev     what tests and checks, too (`make test`, `make check`)
#
# A stamp is written last. It holds all that a finished set-up depends on, so one that was interrupted, one of another
# Python, and one of a tree that has been moved are made again from nothing; one whose inputs changed is brought up to
# date. `.venv` belongs to this script. The first fitting Python is taken; PYTHON=… takes another.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. ./scripts/env.sh

venv=.venv
stamp=$venv/setup-stamp
oldest=3.11

wanted=${1:-}
case $wanted in
all | dev) ;;
*)
    echo "usage: scripts/setup.sh all|dev" >&2
    exit 2
    ;;
esac

say() { printf '%s\n' "setup: $*" >&2; }

# Prints the version (3.11) of the Python named, or fails. It is run rather than looked for: a shim may lead nowhere.
version_of() {
    "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# What a finished set-up depends on, in a form that can be compared.
dependencies_of() {
    printf 'place %s\npython %s\n' "$(pwd -P)" "$1"
    cksum pyproject.toml hatch_build.py
    find proto/bursar -type f -name '*.proto' -exec cksum {} + | LC_ALL=C sort
}

choose_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3; do
        if version=$(version_of "$candidate"); then
            python=$candidate
            return
        fi
    done
    say "Bursar needs Python $oldest or newer, and none was found: install python3 and python3-venv, or name one: make PYTHON=/path/to/python3"
    exit 1
}

has_pip() { "$venv/bin/python" -I -m pip --version; }

make_with_venv() { "$python" -I -m venv "$venv" && has_pip; }

# Where ensurepip is missing (Debian without python3-venv), pip comes as a wheel from the configured index.
make_with_fetched_pip() {
    "$python" -I -m venv --without-pip "$venv" &&
        mkdir "$venv/tmp" &&
        wheel=$("$python" -I scripts/fetch_pip.py "$venv/tmp") &&
        "$venv/bin/python" -I "$wheel/pip" install --quiet --no-index --no-deps "$wheel" && has_pip
}

make_with_uv() { uv venv --quiet --seed --python "$python" "$venv" && has_pip; }

make_with_virtualenv() { { virtualenv --quiet --python "$python" "$venv" || "$python" -m virtualenv --quiet "$venv"; } && has_pip; }

make_venv() {
    reason=
    for way in make_with_venv make_with_fetched_pip make_with_uv make_with_virtualenv; do
        rm -rf "$venv"
        if output=$($way 2>&1); then
            return
        fi
        if [ $way = make_with_fetched_pip ]; then
            reason=$(printf '%s\n' "$output" | sed -n '$p')
        fi
    done
    rm -rf "$venv"
    package=${python##*/}-venv
    say "$python cannot make a virtual environment with pip here: install the package $package (Debian, Ubuntu: apt-get install $package)${reason:+; without it: $reason}"
    exit 1
}

# Whether nothing is to be done. Sets `version` and `installed` to what a sound .venv has; `installed` is empty for none.
is_done() {
    installed=
    version=$(version_of "$venv/bin/python") && [ -f "$stamp" ] || return 1
    stamped=$(sed 1d "$stamp")
    needed=$(dependencies_of "$version")
    [ "$(printf '%s\n' "$stamped" | sed 2q)" = "$(printf '%s\n' "$needed" | sed 2q)" ] || return 1
    installed=$(sed 1q "$stamp")
    [ "$stamped" = "$needed" ] && { [ "$installed" = "$wanted" ] || [ "$installed" = dev ]; }
}

# One set-up at a time (`make -j demo test`). The lock is on a file that is there anyway and ends with the last process
# that has it open, children of a set-up that was killed included. Where there are no such locks, there is none.
lock() {
    exec 9<pyproject.toml
    for candidate in "$venv/bin/python" ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        "$candidate" -I - 2>/dev/null <<'PROGRAM' && return
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup: waiting for another set-up of this tree", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
PROGRAM
    done
    return 0
}

if is_done; then
    exit 0
fi
lock >&2
if is_done; then
    exit 0
fi

if [ -z "$installed" ]; then
    choose_python
    say "making $venv with $python; the first time this downloads about 60 MB and takes a minute"
    make_venv
else
    say "bringing $venv up to date"
    rm -f "$stamp"
    if [ "$installed" = dev ]; then
        wanted=dev
    fi
fi

# Temporary files lie in .venv, so that nothing is left elsewhere by a set-up that was killed.
rm -rf "$venv/tmp"
mkdir "$venv/tmp"
dependencies_of "$version" >"$venv/tmp/needed"
TMPDIR=$(pwd -P)/$venv/tmp "$venv/bin/python" -I -m pip install --quiet --quiet --only-binary :all: --editable ".[$wanted]"

{ echo "$wanted" && cat "$venv/tmp/needed"; } >"$stamp.new"
rm -rf "$venv/tmp"
mv "$stamp.new" "$stamp"
say "done"
