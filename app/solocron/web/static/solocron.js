/* solocron in a browser: notifications, each once and in its store's order, over any number of
connections. `stores` has the last seq seen of each store, or of "*" for all; null: only new ones.
`options.token` is a string, or a function that makes one and is called again before it ends. Called
are onEvent(event), a CloudEvent with storeId, seq and feed; onGap({ storeId, last, newest }), of
what cannot be had any more; onRefused(code, stores), which are not watched; and onState(state,
reason): connecting, open or waiting, and in the end closed. What they throw is reported. */

const FINAL = new Set([1002, 1003, 1007, 1008, 1009, 1010, 4401, 4403]);
const [LOST, POLICY, UNAUTHENTICATED] = [1006, 1008, 4401];

function report(error) { (globalThis.reportError ?? console.error)(error); }

function whole(url) { // a page's own address is what a relative one goes on from
  const page = globalThis.location?.href;
  try { return new URL(url, page); } catch {
    const remedy = page ? "" : ": outside of a page give all of it, such as wss://shop.example/ws";
    throw new TypeError(`${url} is no URL${remedy}`);
  }
}

export class Client {
  #last = new Map(); // the last seq of each store watched, or null
  #live = new Set(); // those the server has answered for, on this connection
  #ws = null;
  #state = "";
  #timers = {};
  #failures = 0;
  #isDenied = false; // the last token was; it may have been an old one

  constructor(url, stores, options = {}) {
    if (!globalThis.WebSocket) throw new Error("no WebSocket here: use a browser, or Node 22");
    this.url = whole(url);
    this.url.protocol = this.url.protocol.replace("http", "ws");
    this.options = { heartbeatMs: 25_000, retryMs: [1_000, 30_000], ...options };
    this.subscribe(stores);
    this.#after("connect", 0, () => this.#connect());
  }

  get positions() { return Object.fromEntries(this.#last); }

  subscribe(stores) {
    const fresh = Object.entries(stores).filter(([id]) => !this.#last.has(id));
    const all = new Map([...this.#last, ...fresh]);
    if (all.has("*") && all.size > 1) throw new Error("'*' is all stores: watch it alone");
    this.#last = all;
    if (fresh.length) this.#send({ type: "subscribe", stores: Object.fromEntries(fresh) });
  }

  unsubscribe(stores) {
    const gone = this.#forget(stores.map(String));
    if (gone.length) this.#send({ type: "unsubscribe", stores: gone });
  }

  close(reason = "") {
    this.#leave();
    this.#is("closed", reason);
  }

  async #connect() {
    this.#is("connecting");
    const token = await this.#token().catch(() => undefined);
    if (this.#state === "closed") return;
    if (token === undefined) return this.#again("there is no token now");
    const ws = this.#ws = new WebSocket(this.url, "solocron.v1");
    this.#watch(true);
    ws.onopen = () => {
      if (token) this.#send({ type: "authenticate", token });
      if (this.#last.size) this.#send({ type: "subscribe", stores: this.positions });
    };
    ws.onmessage = ({ data }) => {
      this.#watch(false);
      try { this.#hear(JSON.parse(data)); } catch (error) { this.#lost(LOST, String(error)); }
    };
    ws.onclose = ({ code, reason }) => this.#lost(code, reason);
  }

  #watch(isAsked) { // a silent server is asked, and left when it stays silent
    this.#after("silent", this.options.heartbeatMs * (isAsked ? 0.5 : 1), () => {
      if (isAsked) return this.#lost(LOST, "the server is silent");
      this.#send({ type: "ping" });
      this.#watch(true);
    });
  }

  #hear(frame, { type, code, stores } = frame) {
    if ("specversion" in frame) this.#notified(frame);
    else if (type === "subscribed") this.#subscribed(stores);
    else if (type === "authenticated") this.#renewIn(frame.expires_in);
    else if (type === "unsubscribed" || stores) { // unasked: a renewed token is not for them
      const gone = this.#forget(stores.filter((id) => type === "error" || this.#live.has(id)));
      if (gone.length) this.#tell("onRefused", code ?? "forbidden", gone);
    } else if (type === "error") this.#lost(code === "invalid" ? POLICY : LOST, frame.message);
  }

  #notified(event) {
    const [, storeId, seq] = /^(.*):(\d+)$/.exec(event.id);
    const feed = "feedsequence" in event ? Number(event.feedsequence) : null;
    const [id, number] = feed === null ? [storeId, Number(seq)] : ["*", feed];
    if (!this.#live.has(id) || number <= this.#last.get(id)) return; // not watched, or a repeat
    this.#last.set(id, number);
    this.#failures = 0;
    this.#tell("onEvent", { ...event, storeId, seq: Number(seq), feed });
  }

  #subscribed(stores) {
    this.#isDenied = false;
    this.#is("open");
    this.#after("good", this.options.retryMs[1], () => { this.#failures = 0; });
    for (const id of Object.keys(stores).filter((each) => this.#last.has(each))) {
      const [last, { seq, recovered }] = [this.#last.get(id), stores[id]];
      this.#live.add(id);
      if (last === null || seq < last) this.#last.set(id, seq); // new; or its server was restored
      if (!recovered) this.#tell("onGap", { storeId: id, last, newest: seq });
    }
  }

  #renewIn(seconds) {
    if (seconds === null || typeof this.options.token !== "function") return;
    this.#after("renew", Math.max(seconds * 800, 1_000), async () => {
      const [ws, token] = [this.#ws, await this.#token().catch(() => null)];
      if (ws !== this.#ws) return;
      if (token) this.#send({ type: "authenticate", token });
      else this.#renewIn(0); // the one in use is still good
    });
  }

  #lost(code, reason) {
    this.#leave();
    const why = `${code} ${reason}`.trim(); // most have no reason
    const mayRenew = code === UNAUTHENTICATED && typeof this.options.token === "function";
    if (FINAL.has(code) && (!mayRenew || this.#isDenied)) return this.close(why);
    this.#isDenied ||= mayRenew;
    const hint = code === 1001 && /^reconnect-after-ms=(\d+)$/.exec(reason);
    this.#again(why, hint ? Math.min(Number(hint[1]), 60_000) : undefined);
  }

  #again(reason, pauseMs) { // any pause up to the first, then up to twice as long
    if (this.#state === "closed") return;
    const [first, longest] = this.options.retryMs;
    pauseMs ??= Math.random() * Math.min(longest, first * 2 ** this.#failures++);
    this.#is("waiting", reason);
    this.#after("connect", pauseMs, () => this.#connect());
  }

  #leave() {
    const ws = this.#ws;
    this.#live.clear();
    Object.values(this.#timers).forEach(clearTimeout);
    if (ws) this.#ws = ws.onopen = ws.onmessage = ws.onclose = null;
    ws?.close();
  }

  #forget(ids) { return ids.filter((id) => (this.#live.delete(id), this.#last.delete(id))); }
  #send(frame) { if (this.#ws?.readyState === 1) this.#ws.send(JSON.stringify(frame)); }
  #is(state, why = "") { state !== this.#state && this.#tell("onState", this.#state = state, why); }
  #after(key, ms, act) { clearTimeout(this.#timers[key]); this.#timers[key] = setTimeout(act, ms); }
  #tell(name, ...what) { try { this.options[name]?.(...what); } catch (e) { report(e); } }
  async #token({ token = "" } = this.options) {
    return typeof token === "function" ? token() : token;
  }
}
