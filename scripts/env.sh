# Sourced by every script here: forget what a stray variable would change about Python, pip and Bursar.
# shellcheck shell=sh

unset CDPATH VIRTUAL_ENV \
    PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONEXECUTABLE \
    PYTHONOPTIMIZE PYTHONDONTWRITEBYTECODE PYTHONINSPECT PYTHONWARNINGS PYTHONDEVMODE PYTHONCASEOK \
    PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_EDITABLE PIP_REQUIREMENT PIP_DRY_RUN PIP_NO_DEPS PIP_IGNORE_INSTALLED \
    PIP_REQUIRE_HASHES PIP_NO_BINARY PIP_ONLY_BINARY PIP_NO_BUILD_ISOLATION PIP_REQUIRE_VIRTUALENV PIP_ISOLATED \
    PYTEST_ADDOPTS PYTEST_PLUGINS MYPYPATH

# Set rather than unset: pip's own file may say `user = true`.
PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PIP_USER PIP_DISABLE_PIP_VERSION_CHECK PIP_NO_INPUT

# The demo and the tests bring their own cluster; a shell that points at a real one must not lead them there.
for name in $(env | sed -n 's/^\(BURSAR_MASTER[A-Z0-9_]*\)=.*/\1/p; s/^\(BURSAR_AGENT[A-Z0-9_]*\)=.*/\1/p'); do
    unset "$name"
done
unset name
