# Sourced by run_train.sh and tests/run.sh in the project's folder: sets PYTHON, and installs what is missing.
#
# The active environment is used where titan_wlb and torch are importable in it; else .venv beside this project, made
# from python3. .venv is stamped with the pyproject.toml it was made from, so that a second start only compares the stamp.
# SETUP_EXTRA names an optional dependency group of pyproject.toml to install too.

_stamp() { cksum < pyproject.toml; }
_stamp_file() { echo ".venv/titan_wlb${1:+.$1}.stamp"; }

_importable() {
  "$1" - "${SETUP_EXTRA:-}" <<'P' 2>/dev/null
import importlib.util, sys
names = ["titan_wlb", "torch", "torchtitan"] + (["pytest", "pytest_timeout", "hypothesis", "ruff", "mypy", "matplotlib"] if sys.argv[1] == "test" else [])
sys.path = [path for path in sys.path if path]  # the folder that we stand in is no installation
sys.exit(any(importlib.util.find_spec(name) is None for name in names))
P
}

_set_up() {
  local active; active=$(command -v python || command -v python3 || true)
  if [ -z "$active" ]; then echo "titan_wlb: no python on this machine; install Python 3.10 or newer" >&2; exit 1; fi
  if _importable "$active"; then PYTHON="$active"; return; fi
  if [ -x .venv/bin/python ] && [ "$(cat "$(_stamp_file "${SETUP_EXTRA:-}")" 2>/dev/null)" = "$(_stamp)" ]; then
    PYTHON="$PWD/.venv/bin/python"
    return
  fi
  local base; base=$(command -v python3 || echo "$active")
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "titan_wlb: $base is $("$base" --version 2>&1), Python 3.10 or newer is needed" >&2; exit 1
  fi
  PYTHON="$PWD/.venv/bin/python"
  if [ ! -x "$PYTHON" ]; then
    # A torch that is there already is not downloaded again; one that does not fit is replaced in .venv alone.
    local shared=(); "$base" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' && shared=(--system-site-packages)
    echo "setup: making .venv with $("$base" --version 2>&1)${shared[0]+, on top of the torch that is installed}"
    "$base" -m venv "${shared[@]+"${shared[@]}"}" .venv
  fi
  echo "setup: installing titan_wlb${SETUP_EXTRA:+[$SETUP_EXTRA]} and what it needs into .venv (once; PyTorch is large)"
  local pip=("$PYTHON" -m pip install --disable-pip-version-check -e ".${SETUP_EXTRA:+[$SETUP_EXTRA]}")
  if [ -t 1 ]; then "${pip[@]}"; else "${pip[@]}" --progress-bar off | grep --line-buffered -E '^(Collecting|Installing|Successfully)' | cut -c -200; fi
  _stamp > "$(_stamp_file)"
  [ -z "${SETUP_EXTRA:-}" ] || _stamp > "$(_stamp_file "$SETUP_EXTRA")"
  echo "setup: done"
}

_set_up
