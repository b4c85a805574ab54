// SPDX-License-Identifier: AGPL-3.0-or-later
"use strict";

// The ticket lies in a cookie that this script cannot read; the token below only proves that a request comes from here.
const CSRF = "orrery.csrf";
const USER = "orrery.user";
const POLL = 3000;
let timer = 0;

const element = (id) => document.getElementById(id);

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function api(verb, path, parameters) {
  const headers = {};
  const token = sessionStorage.getItem(CSRF);
  if (verb !== "GET" && token) headers.CSRFPreventionToken = token;
  const body = parameters ? new URLSearchParams(parameters) : undefined;
  const reply = await fetch(`/api2/json${path}`, { method: verb, headers, body, credentials: "same-origin" });
  const content = reply.headers.get("content-type") || "";
  const found = content.startsWith("application/json") ? await reply.json() : {};
  if (!reply.ok) {
    const details = Object.entries(found.errors || {}).map(([name, text]) => `${name}: ${text}`);
    throw new Refused(reply.status, [found.message || reply.statusText, ...details].join(" ").trim());
  }
  return found.data;
}

function say(text, bad = false) {
  const message = element("message");
  message.textContent = text;
  message.classList.toggle("bad", bad);
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) {
    showLogin();
    return;
  }
  say(error.message || String(error), true);
}

async function showLogin() {
  clearTimeout(timer);
  sessionStorage.clear();
  element("machines").hidden = true;
  element("who").hidden = true;
  element("login").hidden = false;
  element("username").focus();
  const realms = await api("GET", "/access/domains");
  element("realm").replaceChildren(
    ...realms.map((realm) => {
      const option = document.createElement("option");
      option.value = realm.realm;
      option.textContent = realm.comment || realm.realm;
      option.selected = realm.realm === "pve";
      return option;
    }),
  );
}

// People who are told to log in as admin@pve type just that: a realm that follows the name counts before the list.
function account(form) {
  const typed = form.username.value.trim();
  const at = typed.lastIndexOf("@");
  const realm = typed.slice(at + 1);
  const known = Array.from(form.realm.options, (option) => option.value);
  return at > 0 && known.includes(realm)
    ? { username: typed.slice(0, at), realm }
    : { username: typed, realm: form.realm.value };
}

async function logIn(event) {
  event.preventDefault();
  const form = event.target;
  say("Logging in …");
  try {
    const found = await api("POST", "/access/ticket", {
      ...account(form),
      password: form.password.value,
      cookie: "1",
    });
    sessionStorage.setItem(CSRF, found.CSRFPreventionToken);
    sessionStorage.setItem(USER, found.username);
    form.reset();
    say("");
    showMachines();
  } catch (error) {
    say(error.status === 401 ? "User name or password is wrong." : error.message, true);
    form.password.select();
  }
}

async function logOut() {
  await api("DELETE", "/access/ticket").catch(() => undefined);
  say("Logged out.");
  showLogin().catch(failed);
}

function cell(row, text) {
  const made = document.createElement("td");
  made.textContent = text;
  row.append(made);
  return made;
}

function button(text, label, enabled, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.disabled = !enabled;
  made.addEventListener("click", action);
  return made;
}

function row(machine) {
  const name = machine.name || `VM ${machine.vmid}`;
  const made = document.createElement("tr");
  cell(made, machine.vmid);
  cell(made, name);
  cell(made, machine.node);
  cell(made, machine.lock ? `${machine.status} (${machine.lock})` : machine.status);
  cell(made, machine.maxmem ? `${Math.round(machine.maxmem / 1048576)} MiB` : "");
  const runs = machine.status === "running";
  cell(made, "").append(
    button("Start", `Start ${name}`, !runs, () => change(machine, "start").catch(failed)),
    button("Stop", `Stop ${name}`, runs, () => change(machine, "stop").catch(failed)),
  );
  return made;
}

async function change(machine, verb) {
  const name = machine.name || `VM ${machine.vmid}`;
  say(`${name}: ${verb} …`);
  const upid = await api("POST", `/nodes/${machine.node}/${machine.type}/${machine.vmid}/status/${verb}`);
  for (;;) {
    const task = await api("GET", `/nodes/${machine.node}/tasks/${encodeURIComponent(upid)}/status`);
    if (task.status === "stopped") {
      const good = task.exitstatus === "OK" || task.exitstatus.startsWith("WARNINGS");
      say(`${name}: ${verb} ${good ? "done" : `failed: ${task.exitstatus}`}`, !good);
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  await refresh();
}

async function refresh() {
  const machines = await api("GET", "/cluster/resources?type=vm");
  machines.sort((a, b) => a.vmid - b.vmid);
  const rows = element("rows");
  // Leave the rows alone while nothing changed, so that the keyboard's focus stays where it is.
  const state = JSON.stringify(machines.map((m) => [m.vmid, m.name, m.node, m.status, m.lock, m.maxmem]));
  if (rows.dataset.state !== state) {
    rows.replaceChildren(...machines.map(row));
    rows.dataset.state = state;
  }
  element("none").hidden = machines.length > 0;
}

async function poll() {
  clearTimeout(timer);
  try {
    await refresh();
    timer = setTimeout(poll, POLL);
  } catch (error) {
    failed(error);
    if (!(error instanceof Refused && error.status === 401)) timer = setTimeout(poll, POLL);
  }
}

function showMachines() {
  element("login").hidden = true;
  element("machines").hidden = false;
  element("who").hidden = false;
  element("user").textContent = sessionStorage.getItem(USER);
  poll();
}

element("login").addEventListener("submit", logIn);
element("logout").addEventListener("click", logOut);
if (sessionStorage.getItem(CSRF)) showMachines();
else showLogin().catch(failed);
