#!/usr/bin/env bash
# SPDX-License-Identifier: AGPL-3.0-or-later
# Remove what was made in the checkout, and the state folder that is named. Refuses, before anything is removed, while
# programs still run from the virtual environment: another node of this checkout would lose its own program.
#
#   packaging/clean.sh ROOT
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:?the state folder}

running=$(grep -lsF -- "$(pwd -P)/.venv/" /proc/[0-9]*/maps || true)
if [ -n "$running" ]; then
    echo "clean: nothing was removed, since these run from here; end them first (a node: make down ROOT=…):" >&2
    for maps in $running; do
        folder=${maps%/maps}
        printf '  %s: %s\n' "${folder#/proc/}" "$(tr '\0' ' ' <"$folder/cmdline" 2>/dev/null || true)" >&2
    done
    exit 1
fi
rm -rf -- "$root" build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
find . -name __pycache__ -type d -prune -exec rm -rf {} +
