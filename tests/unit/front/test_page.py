# SPDX-License-Identifier: AGPL-3.0-or-later
"""The page's script in Node.js, without a browser: whom a filled-in form means."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")

STAGE = """
const nothing = { addEventListener() {}, focus() {}, replaceChildren() {} };
const stage = {
  document: { getElementById: () => nothing },
  sessionStorage: { getItem: () => null, clear() {} },
  fetch: () => new Promise(() => {}),
  clearTimeout() {},
};
const [script, username] = JSON.parse(require("fs").readFileSync(0));
const context = require("vm").createContext(stage);
require("vm").runInContext(script, context);
const form = { username: { value: username }, realm: { value: "pve", options: [{ value: "pam" }, { value: "pve" }] } };
console.log(JSON.stringify(context.account(form)));
"""


@pytest.mark.parametrize(
    ("typed", "username", "realm"),
    [
        ("admin", "admin", "pve"),
        (" admin@pve ", "admin", "pve"),
        ("root@pam", "root", "pam"),
        ("anna@example.org", "anna@example.org", "pve"),
        ("anna@example.org@pam", "anna@example.org", "pam"),
        ("@pam", "@pam", "pve"),
    ],
)
def test_a_realm_behind_the_name_counts(typed: str, username: str, realm: str) -> None:
    script = (files("orrery.front") / "page" / "page.js").read_text()
    done = subprocess.run(
        ["node", "-e", STAGE], input=json.dumps([script, typed]), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"username": username, "realm": realm}
