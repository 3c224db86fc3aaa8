// What an API gateway in Node commonly is: Express, http-proxy-middleware, a token and a rate limit in Redis checked on
// the way. It runs in cluster mode under PM2.
const express = require("express");
const jwt = require("jsonwebtoken");
const { Agent } = require("node:http");
const { randomUUID } = require("node:crypto");
const { Redis } = require("ioredis");
const { createProxyMiddleware } = require("http-proxy-middleware");

const { PORT, UPSTREAM, REDIS_URL, JWT_SECRET } = process.env;
const redis = new Redis(REDIS_URL);
const app = express();

app.use((request, response, next) => {
  request.headers["x-request-id"] ??= randomUUID();
  try {
    const token = (request.headers.authorization ?? "").replace(/^Bearer /, "");
    request.user = jwt.verify(token, JWT_SECRET);
    next();
  } catch {
    response.status(401).json({ error: "UNAUTHENTICATED" });
  }
});

app.use(async (request, response, next) => {
  const key = `rate:${request.user.sub}:${Math.floor(Date.now() / 1000)}`;
  const [[, count]] = await redis.multi().incr(key).expire(key, 2).exec();
  if (count > 1_000_000) response.status(429).json({ error: "TOO_MANY_REQUESTS" });
  else next();
});

app.use(createProxyMiddleware({ target: UPSTREAM, agent: new Agent({ keepAlive: true, maxSockets: 1024 }), xfwd: true }));
app.listen(Number(PORT), "127.0.0.1", 4096);
