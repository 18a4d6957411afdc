// The original system, written anew from its page: three functions on a Redis client, and a cron job
// that uses them. What it does is said as JSON lines on stdout.
//
// Its only argument is a JSON object: `key`, `ttl_ms`, `body_ms`, `witness` (the Redis list its body
// writes each tick to), `name`, and, if it has a schedule: `anchor_ms` (when the tick `start_ms` is
// due, by the machine's clock), `period_ms` (of the machine's time), `step_ms` (from tick to tick) and
// `late_ms` (its clock is so much behind). A line on stdin runs the job at once: {"tick": n}, with
// `body_ms` or `ttl_ms` of its own; {"is_locked": true} asks isLocked.
"use strict";

const readline = require("node:readline");
const { Redis } = require("ioredis");

const options = JSON.parse(process.argv[2]);
const { REDIS_URL, REDIS_HOST, REDIS_PORT, REDIS_PASSWORD } = process.env;
const redis = REDIS_URL
  ? new Redis(REDIS_URL)
  : new Redis({ host: REDIS_HOST, port: Number(REDIS_PORT), password: REDIS_PASSWORD });

async function acquireLock(key, ttlMs) {
  const result = await redis.set(key, "locked", "PX", ttlMs, "NX");
  return result === "OK";
}

async function releaseLock(key) {
  await redis.del(key);
}

async function isLocked(key) {
  return (await redis.exists(key)) === 1;
}

const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function cronJob(tick, { body_ms, ttl_ms } = options) {
  const gotLock = await acquireLock(options.key, ttl_ms ?? options.ttl_ms);
  if (!gotLock) {
    say({ event: "skipping", tick });
    return;
  }
  try {
    await redis.rpush(options.witness, `${tick} ${options.name}`);
    say({ event: "start", tick });
    await sleep(body_ms ?? options.body_ms);
  } finally {
    await releaseLock(options.key);
    say({ event: "end", tick });
  }
}

async function schedule({ anchor_ms, start_ms, period_ms, step_ms, late_ms }) {
  const now = () => Date.now() - late_ms;
  let n = Math.max(0, Math.ceil((now() - anchor_ms) / period_ms));
  for (; ; n += 1) {
    const due = anchor_ms + n * period_ms;
    while (now() < due) await sleep(Math.max(1, due - now()));
    cronJob(start_ms + n * step_ms);
  }
}

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const order = JSON.parse(line);
  if (order.is_locked) say({ event: "is-locked", locked: await isLocked(options.key) });
  else cronJob(order.tick, order);
});
redis.once("ready", () => {
  say({ event: "ready" });
  if (options.anchor_ms !== undefined) schedule(options);
});
