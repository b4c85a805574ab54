# SPDX-License-Identifier: AGPL-3.0-or-later
"""The realm of the host's accounts against the system's real PAM, with accounts that exist in a private /etc only."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orrery.access.realms.pam import PamRealm
from orrery.errors import Failure
from orrery.model.identity import UserId

# Runs in a mount namespace of its own, where /etc is a copy. Prints what the realm answered.
PROGRAM = """
import ctypes, json, sys
from orrery.access.realms.pam import PamRealm
from orrery.errors import Failure
from orrery.model.identity import UserId

def tries(realm, *logins):
    return [realm.authenticate(UserId(name, "pam"), password) for name, password in logins]

def sets(realm, name, password):
    try:
        realm.set_password(UserId(name, "pam"), password)
    except Failure as error:
        return error.message

realm, other = PamRealm(), PamRealm("no-such-service")
good = ("orrtest", "first secret")
print(json.dumps({
    "good": tries(realm, good),
    "fallback": tries(other, good),
    "bad": tries(realm, ("orrtest", "wrong"), ("orrtest", ""), ("orrtest", "first secret\\0x"), ("orrtest", "x" * 9999),
                 ("nobody-here", "first secret"), ("orrold", "first secret"), ("orrlocked", "first secret"),
                 ("orrempty", ""), ("orrempty", "x")),
    "set": sets(realm, "orrtest", "second s\\u00e9cret"),
    "old": tries(realm, good),
    "new": tries(realm, ("orrtest", "second s\\u00e9cret")),
    "refused": sets(realm, "nobody-here", "whatever it is"),
}))
"""
COPIED = ("nsswitch.conf", "passwd", "shadow", "group", "login.defs", "security", "pam.d", "ld.so.cache", "environment")
SERVICE = """
auth required pam_unix.so nodelay nullok
account required pam_unix.so
password required pam_unix.so yescrypt
"""
# SHA-512 crypt of "first secret".
HASH = "$6$orrery$WtjnHfTvY9rB8Dc05w.4coiZHXugflwtf9j9RuFiaFJhR0OoPTu7x5PFpH/y7SKNbAu1fifgVdETeCTew0z4H1"


@pytest.fixture
def etc(tmp_path):
    folder = tmp_path / "etc"
    folder.mkdir()
    for name in COPIED:
        source = Path("/etc") / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
        elif source.exists():
            shutil.copy2(source, folder / name)
    (folder / "pam.d" / "orrery").write_text(SERVICE)
    accounts = {"orrtest": (HASH, ""), "orrold": (HASH, "1"), "orrlocked": ("!" + HASH, ""), "orrempty": ("", "")}
    with (folder / "passwd").open("a") as passwd, (folder / "shadow").open("a") as shadow:
        for number, (name, (password, expired)) in enumerate(accounts.items()):
            passwd.write(f"{name}:x:{64100 + number}:64100::/nonexistent:/usr/sbin/nologin\n")
            shadow.write(f"{name}:{password}:19000:0:99999:7::{expired}:\n")
    return folder


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a private /etc needs root")
def test_real_pam_knows_the_host_s_accounts(etc):
    shell = 'mount --bind "$1" /etc && exec "$2" -c "$3"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh", etc, sys.executable, PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["good"] == [True]
    assert answers["fallback"] == [True]
    assert answers["bad"] == [False] * 9
    assert answers["set"] is None
    assert answers["old"] == [False]
    assert answers["new"] == [True]
    assert "nobody-here" in answers["refused"]
    assert "orrtest" not in Path("/etc/passwd").read_text()


def test_without_libpam_the_error_names_the_package(monkeypatch):
    def missing(name):
        raise OSError("libpam.so.0: cannot open shared object file")

    monkeypatch.setattr("orrery.access.realms.pam.importlib.import_module", missing)
    with pytest.raises(Failure, match="libpam0g"):
        PamRealm().authenticate(UserId("root", "pam"), "x")
