// Keeps one client of each transport connected while it sends notifications to their user, until its standard input ends.
// Then it waits until all have heard all, and prints as JSON what became of them.
// usage: node rolling.mjs BASE_URL TOKEN
import { io } from 'socket.io-client';
import WebSocket from 'ws';

const [base, token] = process.argv.slice(2);
const user = JSON.parse(Buffer.from(token.split('.')[1], 'base64url')).sub;
const report = { sent: [], failures: [], clients: {} };
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function client(name) {
  return (report.clients[name] = { heard: [], restarts: [], closes: [], welcomes: 0 });
}

function socketIo(transport) {
  const told = client(transport);
  const auth = (give) => give({ token, lastSeq: told.heard.at(-1) ?? 0 });
  const socket = io(`${base}/notifications`, { transports: [transport], forceNew: true, auth, randomizationFactor: 0 });
  socket.on('welcome', () => told.welcomes++);
  socket.on('notification', (notification) => told.heard.push(notification.seq));
  socket.on('server:restarting', ({ retryAfterMs }) => {
    told.restarts.push(retryAfterMs);
    socket.io.reconnectionDelay(retryAfterMs);
  });
  socket.on('disconnect', (reason) => told.closes.push(reason));
  socket.on('connect_error', (error) => report.failures.push(`${transport}: ${error.message} ${error.description ?? ''}`));
  return told;
}

function plain() {
  const told = client('plain');
  const connect = () => {
    const last = told.heard.at(-1) ?? 0;
    const socket = new WebSocket(`${base.replace('http', 'ws')}/notifications?token=${token}&lastSeq=${last}`);
    socket.on('message', (text) => {
      const { event, data } = JSON.parse(text);
      if (event === 'welcome') told.welcomes++;
      if (event === 'notification') told.heard.push(data.seq);
      if (event === 'server:restarting') told.restarts.push(data.retryAfterMs);
    });
    socket.on('error', (error) => report.failures.push(`plain: ${error.message}`));
    socket.on('close', (code, reason) => {
      told.closes.push(`${code} ${reason}`);
      const { retryAfterMs } = code === 1012 ? JSON.parse(reason) : { retryAfterMs: 100 };
      setTimeout(connect, retryAfterMs);
    });
  };
  connect();
  return told;
}

const clients = [socketIo('websocket'), socketIo('polling'), plain()];
let goesOn = true;
process.stdin.on('end', () => { goesOn = false; }).resume();
const patience = Date.now() + 60000;
while (clients.some((told) => told.welcomes === 0)) {
  if (Date.now() > patience) {
    console.error(`not connected: ${JSON.stringify(report)}`);
    process.exit(1);
  }
  await pause(20);
}
console.error('connected');

while (goesOn) {
  try {
    const reply = await fetch(`${base}/api/notifications/send`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
      body: JSON.stringify({ userId: user, message: `number ${report.sent.length + 1}` }),
    });
    const text = await reply.text();
    if (reply.status === 201) report.sent.push(JSON.parse(text).seq);
    else report.failures.push(`sending: ${reply.status} ${text}`);
  } catch (error) {
    report.failures.push(`sending: ${error.message} ${error.cause ?? ''}`);
  }
  await pause(20);
}
const until = Date.now() + 30000;
while (clients.some((told) => (told.heard.at(-1) ?? 0) < report.sent.at(-1)) && Date.now() < until) await pause(20);
// What comes twice comes now.
await pause(200);
process.stdout.write(JSON.stringify(report), () => process.exit(0));
