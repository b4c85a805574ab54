# SPDX-License-Identifier: AGPL-3.0-or-later
"""The page's script in Node.js, without a browser: whom a form means, what errors say, what is asked for first."""

import json
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")

STAGE = """
const nothing = { addEventListener() {}, focus() {}, replaceChildren() {} };
const stage = {
  document: { getElementById: () => nothing },
  sessionStorage: { getItem: () => null, clear() {} },
  fetch: () => new Promise(() => {}),
  clearTimeout() {},
  wait: (then) => setTimeout(then, 50),
};
const [script, expression] = JSON.parse(require("fs").readFileSync(0));
const context = require("vm").createContext(stage);
require("vm").runInContext(script, context);
Promise.resolve(require("vm").runInContext(expression, context)).then((value) => console.log(JSON.stringify(value)));
"""


def evaluate(expression: str) -> Any:
    """What an expression gives where the page's script has been loaded."""
    script = (files("orrery.front") / "page" / "page.js").read_text()
    done = subprocess.run(
        ["node", "-e", STAGE], input=json.dumps([script, expression]), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


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
    form = {"username": {"value": typed}, "realm": {"value": "pve", "options": [{"value": "pam"}, {"value": "pve"}]}}
    assert evaluate(f"account({json.dumps(form)})") == {"username": username, "realm": realm}


def test_an_error_has_a_line_for_each_parameter() -> None:
    reply = {"status": 400, "statusText": "Parameter verification failed."}
    found = {"message": "Parameter verification failed.\n", "errors": {"vmid": "is taken\n", "name": "is long"}}
    lines = ["Parameter verification failed.", "vmid: is taken", "name: is long"]
    assert evaluate(f"reason({json.dumps(reply)}, {json.dumps(found)})").split("\n") == lines
    assert "502" in evaluate('reason({ status: 502, statusText: "" }, {})')


ASK = """(async () => {
  const asked = [];
  const dialog = {
    showModal() {},
    addEventListener(name, listener) {
      this.returnValue = ANSWER;
      listener();
    },
  };
  const other = { classList: { toggle() {} }, dataset: {}, replaceChildren() {} };
  document.getElementById = (id) => (id === "ask" ? dialog : other);
  fetch = (path, options) => { asked.push(`${options.method} ${path}`); return new Promise(() => {}); };
  const doing = ask({ type: "lxc", vmid: 7, node: "a" }, VERB);
  await Promise.race([doing, new Promise((resolve) => globalThis.wait(resolve))]);
  return asked;
})()"""


@pytest.mark.parametrize(
    ("verb", "answer", "expected"),
    [
        ("stop", "no", []),
        ("stop", "yes", ["POST /api2/json/nodes/a/lxc/7/status/stop"]),
        ("shutdown", "no", ["POST /api2/json/nodes/a/lxc/7/status/shutdown"]),
    ],
)
def test_what_cannot_be_taken_back_is_asked_for(verb: str, answer: str, expected: list[str]) -> None:
    script = ASK.replace("ANSWER", json.dumps(answer)).replace("VERB", json.dumps(verb))
    assert evaluate(script) == expected
