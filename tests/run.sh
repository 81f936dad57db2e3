#!/usr/bin/env bash
# Runs all tests, after setting itself up if need be. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SETUP_EXTRA=test
source tools/setup_environment.sh
export OMP_NUM_THREADS=1

echo "tests: ruff and mypy"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
echo "tests: unit, distributed, integration, mutants"
exec "$PYTHON" -m pytest "$@"
