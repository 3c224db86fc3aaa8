// Connects with the stock Socket.IO client, asks for a notification to its own user, and ends well when it is heard.
// usage: node socket-io.mjs BASE_URL TRANSPORT TOKEN
import { io } from 'socket.io-client';

const [base, transport, token] = process.argv.slice(2);
const user = JSON.parse(Buffer.from(token.split('.')[1], 'base64url')).sub;
const text = `by ${transport}`;

const fail = (why) => { console.error(why); process.exit(1); };
const refused = io(`${base}/notifications`, { transports: [transport], forceNew: true, reconnection: false, auth: { token: 'wrong' } });
refused.on('connect', () => fail('a wrong token was believed'));

await new Promise((resolve) => refused.on('connect_error', (error) => {
  if (error.message !== 'unauthorized') fail(`refused with ${error.message}`);
  resolve();
}));
refused.close();

const socket = io(`${base}/notifications`, { transports: [transport], forceNew: true, auth: { token } });
socket.on('connect_error', (error) => console.error(`connect_error: ${error.message}`));
socket.on('notification', (notification) => {
  if (notification.message !== text) return;
  console.log(`heard "${text}" as number ${notification.seq}`);
  socket.close();
  process.exit(0);
});
socket.on('welcome', async () => {
  const acknowledged = await socket.timeout(10000).emitWithAck('subscribe', { userId: user });
  if (acknowledged.userId !== user) fail(`subscribed as ${JSON.stringify(acknowledged)}`);
  const reply = await fetch(`${base}/api/notifications/send`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
    body: JSON.stringify({ userId: user, message: text }),
  });
  if (reply.status !== 201) fail(`the sending answered ${reply.status} ${await reply.text()}`);
});
