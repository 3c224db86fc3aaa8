// Acquires and releases locks with Node's redlock. Arguments: URL, how many, how many at once. Prints locks per second.
import Redis from "ioredis";
import { default as Redlock } from "redlock";

const [url, count, atOnce] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const redis = new Redis(url);
const redlock = new Redlock([redis], { retryCount: 0 });
await redis.ping();

let next = 0;
async function worker() {
  while (next < count) {
    const lock = await redlock.acquire([`node-${next++}`], 30_000);
    await lock.release();
  }
}

const started = process.hrtime.bigint();
await Promise.all(Array.from({ length: atOnce }, worker));
const seconds = Number(process.hrtime.bigint() - started) / 1e9;
console.log(count / seconds);
await redis.quit();
