/* The page that shows what happens to stores. What it is sent is text to it, never markup. */

import { Client } from "./solocron.js";

const MOST = 500; // lines shown
const find = (id) => document.getElementById(id);
let client = null;

function show(text, kind) {
  const line = document.createElement("li");
  line.textContent = text;
  line.className = kind;
  find("events").prepend(line);
  while (find("events").childElementCount > MOST) find("events").lastElementChild.remove();
}

function wanted(text) { // "42,43:17" is { 42: null, 43: 17 }
  const stores = text.split(",").map((each) => each.trim().split(":"));
  return Object.fromEntries(stores.map(([id, seq]) => [id, seq === undefined ? null : Number(seq)]));
}

function watch() {
  client?.close();
  client = new Client(new URL("../ws", import.meta.url), wanted(find("stores").value), {
    token: find("token").value,
    onEvent: (event) =>
      show(`${event.time} ${event.id} ${event.type} ${event.data.name ?? ""}`, "event"),
    onGap: ({ storeId, last, newest }) =>
      show(`${storeId}: what came between ${last} and ${newest} is not kept any more`, "missing"),
    onRefused: (code, stores) => show(`${code}: ${stores.join(", ")}`, "missing"),
    onState: (state, reason) => { find("state").value = reason ? `${state} (${reason})` : state; },
  });
}

find("ask").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  watch();
});
find("stop").addEventListener("click", () => client?.close());
