#!/usr/bin/env bash
# SPDX-License-Identifier: AGPL-3.0-or-later
# Install what is missing: Debian packages (without starting their services), the account `orrery`, and the virtual
# environment from the lock files with hashes. Does nothing, quickly, when everything is in place.
#
#   packaging/setup.sh           what a node needs
#   packaging/setup.sh --test    and what checks and tests need
#   packaging/setup.sh --uv      only uv itself, the program that reads and writes the lock file
set -euo pipefail
cd "$(dirname "$0")/.."

with_tests=no
[ "${1:-}" = --test ] && with_tests=yes

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# --- Debian packages ---------------------------------------------------------------------------------------------

policy=/usr/sbin/policy-rc.d
policy_mark='placed by the setup of Orrery'

wanted_packages() {
    local lists=(packaging/debian-packages.txt)
    [ $with_tests = yes ] && lists+=(packaging/debian-packages-test.txt)
    sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "${lists[@]}" | awk '{print $1}'
}

missing_packages() {
    local names installed
    mapfile -t names < <(wanted_packages)
    installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${names[@]}" 2>/dev/null \
        | awk '$2 == "installed" {print $1}' || true)
    comm -23 <(printf '%s\n' "${names[@]}" | sort -u) <(sort -u <<<"$installed")
}

allow_services_again() {
    if [ -f $policy ] && grep -qs "$policy_mark" $policy; then rm -f $policy; fi
}

forbid_service_starts() {
    allow_services_again # left by a setup that was killed
    if [ -e $policy ]; then
        # An administrator's own policy stays as it is; it decides for itself what may start.
        $policy nginx start >/dev/null 2>&1 || return 0
        say "note: this host's $policy lets packages start services; nginx may start on port 80"
        return 0
    fi
    trap allow_services_again EXIT
    printf '#!/bin/sh\n# %s; goes away when it ends\nexit 101\n' "$policy_mark" >$policy.orrery
    chmod 755 $policy.orrery
    mv $policy.orrery $policy
}

lists_are_stale() {
    ! find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -mtime -7 2>/dev/null | grep -q .
}

# What apt says is kept for the moment that it fails.
apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" \
        </dev/null >>build/apt.log 2>&1
}

install_packages() {
    local missing nginx_is_new=no
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] && return 0
    [ "$(id -u)" = 0 ] || die "run as root, or install first: apt-get install --no-install-recommends ${missing[*]}"
    exec 9>/run/orrery-setup.lock
    flock 9
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] && return 0
    say "installing Debian packages: ${missing[*]}"
    dpkg-query -W -f '${db:Status-Status}' nginx-common 2>/dev/null | grep -q '^installed' || nginx_is_new=yes
    forbid_service_starts
    if lists_are_stale; then apt update || say "apt-get update failed; going on with the lists that are there"; fi
    if ! apt install --no-install-recommends "${missing[@]}"; then
        say "trying once more with fresh package lists"
        apt update || { tail -n 20 build/apt.log >&2; die "apt-get update failed"; }
        apt install --no-install-recommends "${missing[@]}" || { tail -n 20 build/apt.log >&2; die "apt-get failed"; }
    fi
    # The front is a nginx of our own; Debian's must not take port 80 at the next boot unless somebody wanted it.
    if [ $nginx_is_new = yes ]; then
        deb-systemd-helper disable nginx.service >/dev/null 2>&1 || true
        update-rc.d nginx disable >/dev/null 2>&1 || true
    fi
    allow_services_again
    exec 9>&-
}

# --- the account that the front runs as --------------------------------------------------------------------------

create_account() {
    getent passwd orrery >/dev/null && return 0
    [ "$(id -u)" = 0 ] || die "run as root, or create first: useradd --system --user-group orrery"
    say "creating the system user orrery"
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin orrery ||
        getent passwd orrery >/dev/null
}

# --- the virtual environment -------------------------------------------------------------------------------------

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
        then printf '%s\n' "$candidate"; return 0; fi
    done
    die "no Python from 3.11 to 3.14 with venv found; set PYTHON=/path/to/python3"
}

lock_digest() {
    { pwd; cat uv.lock pyproject.toml packaging/uv-requirements.txt packaging/setup.sh; } | sha256sum | cut -d' ' -f1
}

environment_works() {
    [ "$(.venv/bin/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" = "$PWD/.venv" ] &&
        .venv/uv/bin/uv --version >/dev/null 2>&1
}

# uv keeps its downloads below build/, so that `make clean` leaves nothing behind; it links them instead of copying.
create_environment() {
    local python
    environment_works && return 0
    python=$(find_python)
    say "creating .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv --without-pip .venv
    "$python" -m venv .venv/uv
    .venv/uv/bin/python -m pip install -q --disable-pip-version-check --only-binary :all: --require-hashes \
        -r packaging/uv-requirements.txt
}

# uv keeps its downloads below build/, so that `make clean` leaves nothing behind; it links them instead of copying.
sync_environment() {
    local groups=()
    # A node's own setup must not take the test tools away again, hence --inexact.
    if [ $with_tests = yes ]; then groups=(--group dev --group clients); else groups=(--inexact); fi
    say "installing Python libraries from uv.lock"
    UV_CACHE_DIR=${UV_CACHE_DIR:-$PWD/build/uv} UV_PROJECT_ENVIRONMENT=.venv \
        .venv/uv/bin/uv sync -q --locked --no-python-downloads --python .venv/bin/python "${groups[@]}"
}

is_up_to_date() {
    local stamp
    for stamp in "${stamps[@]}"; do
        [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && return 0
    done
    return 1
}

mkdir -p build
if [ "${1:-}" = --uv ]; then
    create_environment
    exit 0
fi
install_packages
create_account
digest=$(lock_digest)
stamps=(.venv/stamp-test)
[ $with_tests = yes ] || stamps+=(.venv/stamp-run)
is_up_to_date && exit 0
exec 8>build/setup.lock
flock 8
is_up_to_date && exit 0
create_environment
sync_environment
printf '%s\n' "$digest" >"${stamps[-1]}"
