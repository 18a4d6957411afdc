/* The dashboard, live: each part of the page that the server has made anew is put in the old one's
place; times are counted down; what the token is for is done once it is confirmed. No token is in
the page: the browser sends along the password that it asked for, but for a WebSocket, which it is
exchanged for. */

import { Client } from "./solocron.js";

const EVERY_MS = 3_000;
const MOST_EVENTS = 100;
const root = new URL("..", import.meta.url);
root.username = root.password = ""; // fetch refuses an address with a password in it
const find = (id) => document.getElementById(id);
const known = new Map(); // what the server last made of each part
let ahead = 0; // by how many ms the server's clock is ahead of this one's
let asking = null; // the question that the dialog is open for

/* -- the parts ---------------------------------------------------------------------------- */

function parts(page) { return [...page.querySelectorAll("[data-live]")]; }

function setClock() { ahead = Number(find("now").dataset.now) - Date.now(); }

function show(page) {
  if (parts(page).map(({ id }) => id).join() !== parts(document).map(({ id }) => id).join()) {
    throw new Error("the server has another release: reload the page");
  }
  const focused = document.activeElement;
  const around = focused?.closest("[data-live]")?.closest("[tabindex]");
  for (const part of parts(page)) {
    if (known.get(part.id) === part.innerHTML) continue;
    known.set(part.id, part.innerHTML);
    find(part.id).replaceChildren(...part.childNodes);
  }
  document.title = page.title;
  setClock();
  count();
  if (around && !focused.isConnected) { // what had the focus was made anew, or is gone
    const beside = document.querySelector(`[data-name="${CSS.escape(focused.dataset.name)}"]`);
    (find(focused.id) ?? beside ?? around).focus();
  }
}

async function refresh() {
  try {
    const answer = await fetch(new URL("dashboard", root), { cache: "no-store" });
    if (answer.status === 401) throw new Error("the token has ended: reload the page");
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    if ("stale" in find("said").dataset) say("");
  } catch (error) {
    say(`Not renewed: ${error.message}`, true);
  }
}

async function keepRefreshing() {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, EVERY_MS));
    if (!document.hidden) await refresh();
  }
}

function say(text, isStale = false) { // once: it is read aloud
  if (find("said").textContent !== text) find("said").textContent = text;
  find("said").toggleAttribute("data-stale", isStale);
}

/* -- times -------------------------------------------------------------------------------- */

function span(ms) {
  const s = Math.max(0, Math.ceil(ms / 1000));
  const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  if (hours >= 48) return `${Math.floor(hours / 24)} days`;
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

function count() {
  const now = Date.now() + ahead;
  for (const time of document.querySelectorAll("time[data-until]")) {
    const left = Number(time.dataset.until) - now;
    time.title ||= time.textContent;
    const text = time.closest("table") ? span(left) : left > 0 ? `in ${span(left)}` : "now";
    if (time.textContent !== text) time.textContent = text;
  }
}

/* -- acts --------------------------------------------------------------------------------- */

const ACTS = {
  run: {
    ask: (name) => `Run ${name} now?`, verb: "Run now", done: (name) => `${name} runs.`,
    means: "It runs once, beside its schedule, also while it is paused.",
    call: (name) => ["POST", `jobs/${encodeURIComponent(name)}/run`],
  },
  pause: {
    ask: (name) => `Pause ${name}?`, verb: "Pause", done: (name) => `${name} is paused.`,
    means: "No server begins a tick of it until then. A run that has begun goes on.",
    call: (name) => ["POST", `jobs/${encodeURIComponent(name)}/pause`,
      { for_s: Number(find("seconds").value) }],
  },
  resume: {
    ask: (name) => `Resume ${name}?`, verb: "Resume", done: (name) => `${name} is not paused.`,
    means: "Its ticks are run again, the next one and perhaps the newest that was missed.",
    call: (name) => ["POST", `jobs/${encodeURIComponent(name)}/resume`],
  },
  unlock: {
    ask: (name) => `Delete the lock ${name}?`, verb: "Delete", done: (name) => `${name} is free.`,
    means: "Its owner has lost it then, and its run, if there is one, is cut short.",
    call: (name) => ["DELETE", `locks/${encodeURIComponent(name)}`],
  },
};

function ask({ act, name }) {
  asking = { act: ACTS[act], name };
  find("question").textContent = asking.act.ask(name);
  find("consequence").textContent = asking.act.means;
  find("yes").textContent = asking.act.verb;
  find("span").hidden = act !== "pause";
  find("confirm").returnValue = "";
  find("confirm").showModal();
}

async function answered() {
  const { act, name } = asking;
  if (find("confirm").returnValue !== "yes") return;
  const [method, path, body] = act.call(name);
  try {
    const answer = await fetch(new URL(`api/v1/${path}`, root), {
      method, body: body && JSON.stringify(body),
      headers: body ? { "Content-Type": "application/json" } : {},
    });
    const said = answer.ok ? act.done(name) : (await answer.json()).detail;
    say(answer.ok ? said : `Not done: ${said}`);
  } catch (error) {
    say(`Not done: ${error.message}`);
  }
  await refresh();
}

/* -- notifications ------------------------------------------------------------------------ */

function hear(event) {
  if (!find("hearing").checked) return;
  const line = document.createElement("li"); // what is sent is text, never markup
  line.textContent = `${event.time} ${event.storeId} ${event.type} ${event.data.name ?? ""}`;
  find("events").prepend(line);
  while (find("events").childElementCount > MOST_EVENTS) find("events").lastElementChild.remove();
}

async function token() { // one that only listens, and soon ends
  const answer = await fetch(new URL("dashboard/token", root), { method: "POST" });
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return (await answer.json()).token;
}

function listen() {
  return new Client(new URL("ws", root), { "*": null }, {
    token,
    onEvent: hear,
    onState: (state, reason) => {
      find("connection").value = reason ? `${state} (${reason})` : state;
    },
  });
}

/* -- the page ----------------------------------------------------------------------------- */

document.documentElement.classList.add("live");
parts(document).forEach((part) => known.set(part.id, part.innerHTML));
document.addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-act]");
  if (button) ask(button.dataset);
});
find("confirm").addEventListener("close", answered);
setClock();
count();
setInterval(count, 1_000);
if ("listen" in document.body.dataset) listen();
keepRefreshing();
