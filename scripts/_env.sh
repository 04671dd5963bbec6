# Sourced by the scripts beside it: makes the virtual environment once, and again when its inputs change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
venv=${VENV:-.venv}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "portal-extract needs Python 3.11 or later; set PYTHON to one" >&2
    exit 2
}
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat "$venv/.installed" 2>/dev/null || true)" != "$wanted" ]; then
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
    echo "$wanted" >"$venv/.installed"
fi
PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH
