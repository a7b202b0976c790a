#!/bin/sh
# Makes the virtual environment $1 with the pinned dependencies. Told to the user, as it takes minutes the first time.
set -eu
venv=$1
python=
for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: Python 3.11 or newer is needed and was not found" >&2
    exit 3
fi
echo "setting up $venv: PyTorch, DeepSpeed and the other packages pinned in constraints.txt." >&2
echo "This happens once, and again only when pyproject.toml or constraints.txt change." >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip install --disable-pip-version-check --progress-bar on"
# setuptools and torch first: DeepSpeed's build looks at the torch that is there, so it is built without isolation.
$pip -c constraints.txt setuptools wheel numpy torch
$venv/bin/python - <<'PY' >"$venv/requirements.txt"
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PY
DS_BUILD_OPS=0 $pip -c constraints.txt --no-build-isolation -r "$venv/requirements.txt"
touch "$venv/dependencies"
echo "set up." >&2
