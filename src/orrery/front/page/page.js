// SPDX-License-Identifier: AGPL-3.0-or-later
"use strict";

// The ticket lies in a cookie that this script cannot read; the token below only proves that a request comes from here.
const CSRF = "orrery.csrf";
const USER = "orrery.user";
const POLL = 3000;
const KINDS = { qemu: "Machine", lxc: "Container" };
const VERBS = {
  start: { label: "Start", during: "is being started …", good: "was started.", bad: "could not be started" },
  shutdown: { label: "Shut down", during: "is asked to shut down …", good: "has shut down.", bad: "did not shut down" },
  stop: { label: "Stop", during: "is being stopped …", good: "was stopped.", bad: "could not be stopped" },
};
const SILENT = "The node does not answer. Trying again …";
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
  const options = { method: verb, headers, body, credentials: "same-origin" };
  // What the browser says of a connection that fails is meant for programmers.
  const reply = await fetch(`/api2/json${path}`, options).catch(() => {
    throw new Refused(0, SILENT);
  });
  const content = reply.headers.get("content-type") || "";
  const found = content.startsWith("application/json") ? await reply.json() : {};
  if (!reply.ok) throw new Refused(reply.status, reason(reply, found));
  return found.data;
}

// One line for what was wrong, and one for each parameter.
function reason(reply, found) {
  const details = Object.entries(found.errors || {}).map(([name, text]) => `${name}: ${String(text).trim()}`);
  const message = (found.message || reply.statusText || `The node answered with status ${reply.status}.`).trim();
  return [message, ...details].join("\n");
}

function say(text, bad = false) {
  const message = element("message");
  message.textContent = text;
  message.classList.toggle("bad", bad);
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) {
    showLogin().catch(failed);
    return;
  }
  say(error.message || String(error), true);
}

async function showLogin() {
  clearTimeout(timer);
  sessionStorage.clear();
  element("guests").hidden = true;
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
    showGuests();
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

function nameOf(guest) {
  return guest.name || `${guest.type === "lxc" ? "CT" : "VM"} ${guest.vmid}`;
}

function row(guest) {
  const made = document.createElement("tr");
  cell(made, guest.vmid);
  cell(made, nameOf(guest));
  cell(made, KINDS[guest.type] || guest.type);
  cell(made, guest.node);
  cell(made, guest.lock ? `${guest.status} (${guest.lock})` : guest.status);
  cell(made, guest.maxmem ? `${Math.round(guest.maxmem / 1048576)} MiB` : "");
  const runs = guest.status === "running";
  const act = (verb, enabled) =>
    button(VERBS[verb].label, `${VERBS[verb].label} ${nameOf(guest)}`, enabled, () => ask(guest, verb).catch(failed));
  cell(made, "").append(act("start", !runs), act("shutdown", runs), act("stop", runs));
  return made;
}

// What cannot be taken back is asked for; everything else is done at once.
async function ask(guest, verb) {
  if (verb === "stop") {
    const dialog = element("ask");
    element("question").textContent = `Stop ${nameOf(guest)} (${guest.vmid}) at once?`;
    dialog.returnValue = "no"; // the Escape key leaves what the last answer was
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "yes") return;
  }
  await change(guest, verb);
}

async function change(guest, verb) {
  const { during, good, bad } = VERBS[verb];
  const name = nameOf(guest);
  say(`${name} ${during}`);
  let status;
  try {
    status = await ended(guest, await api("POST", `/nodes/${guest.node}/${guest.type}/${guest.vmid}/status/${verb}`));
  } catch (error) {
    if (error.status === 401 || error.status === 0) throw error;
    status = error.message;
  }
  const done = status === "OK" || status.startsWith("WARNINGS");
  say(done ? `${name} ${good}` : `${name} ${bad}: ${status}`, !done);
  await refresh();
}

// How a task ended.
async function ended(guest, upid) {
  for (;;) {
    const task = await api("GET", `/nodes/${guest.node}/tasks/${encodeURIComponent(upid)}/status`);
    if (task.status === "stopped") return task.exitstatus;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

async function refresh() {
  const guests = await api("GET", "/cluster/resources?type=vm");
  guests.sort((a, b) => a.vmid - b.vmid);
  const rows = element("rows");
  // Leave the rows alone while nothing changed, so that the keyboard's focus stays where it is.
  const state = JSON.stringify(guests.map((g) => [g.vmid, g.type, g.name, g.node, g.status, g.lock, g.maxmem]));
  if (rows.dataset.state !== state) {
    rows.replaceChildren(...guests.map(row));
    rows.dataset.state = state;
  }
  element("none").hidden = guests.length > 0;
}

async function poll() {
  clearTimeout(timer);
  try {
    await refresh();
    if (element("message").textContent === SILENT) say("");
    timer = setTimeout(poll, POLL);
  } catch (error) {
    failed(error);
    if (!(error instanceof Refused && error.status === 401)) timer = setTimeout(poll, POLL);
  }
}

function showGuests() {
  element("login").hidden = true;
  element("guests").hidden = false;
  element("who").hidden = false;
  element("user").textContent = sessionStorage.getItem(USER);
  poll();
}

element("login").addEventListener("submit", logIn);
element("logout").addEventListener("click", logOut);
if (sessionStorage.getItem(CSRF)) showGuests();
else showLogin().catch(failed);
