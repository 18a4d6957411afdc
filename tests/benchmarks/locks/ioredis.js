// A process of the benchmark, as worker.py: what the original system does, SET NX and a release by
// a script that compares the token, with ioredis. Its argument: the port of Redis.
"use strict";
const net = require("net");
const readline = require("readline");
const { randomUUID } = require("crypto");
const Redis = require("ioredis");

const RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
const TTL_MS = 10000;
const redis = new Redis({ host: "127.0.0.1", port: Number(process.argv[2]) });
const control = new net.Socket({ fd: 0 });
const say = (value) => control.write(JSON.stringify(value) + "\n");

async function cycle(sha, key) {
  const token = randomUUID();
  if ((await redis.set(key, token, "PX", TTL_MS, "NX")) !== "OK") throw new Error("not taken");
  if ((await redis.evalsha(sha, 1, key, token)) !== 1) throw new Error("not freed");
}

async function turn(sha, tasks, seconds) {
  const began = process.hrtime.bigint(), cpu = process.cpuUsage();
  const end = began + BigInt(Math.round(seconds * 1e9));
  const repeat = async (key) => {
    let done = 0;
    for (; process.hrtime.bigint() < end; done++) await cycle(sha, key);
    return done;
  };
  const counts = await Promise.all(Array.from({ length: tasks }, (_, n) => repeat(`cron:bench-${n}`)));
  const used = process.cpuUsage(cpu);
  return {
    cycles: counts.reduce((a, b) => a + b, 0),
    wall_s: Number(process.hrtime.bigint() - began) / 1e9,
    cpu_s: (used.user + used.system) / 1e6,
  };
}

async function main() {
  const sha = await redis.script("LOAD", RELEASE);
  await cycle(sha, "cron:bench-first");
  say({});
  for await (const line of readline.createInterface({ input: control })) {
    const [, tasks, seconds] = JSON.parse(line);
    say(await turn(sha, tasks, seconds));
  }
  redis.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
