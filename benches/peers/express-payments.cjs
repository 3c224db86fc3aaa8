// What a payment callback in Node commonly is, made right: Express and pg, the signature checked over the raw body, and
// everything in one transaction under the order's lock, on the same tables and with the same effects.
const express = require("express");
const { Pool } = require("pg");
const { createHmac, randomUUID, timingSafeEqual } = require("node:crypto");

const { PORT, DATABASE_URL, SECRET, CONNECTIONS } = process.env;
const pool = new Pool({ connectionString: DATABASE_URL, max: Number(CONNECTIONS) });
const app = express();

// Prepared once a connection.
const run = (client, name, text, values) => client.query({ name, text, values });

function verify(request) {
  const [id, timestamp, signature] = ["id", "timestamp", "signature"].map((name) => request.get(`webhook-${name}`) ?? "");
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > 300) return null;
  const expected = createHmac("sha256", SECRET).update(`${id}.${timestamp}.`).update(request.body).digest();
  const given = Buffer.from(signature.replace(/^v1,/, ""), "base64");
  return given.length === expected.length && timingSafeEqual(given, expected) ? id : null;
}

async function settle(client, id, request, notice) {
  const now = (await run(client, "clock", "select clock_timestamp() as now", [])).rows[0].now;
  const { orderId, transactionId, provider } = notice;
  const headers = { "webhook-id": id, "webhook-timestamp": request.get("webhook-timestamp"), "webhook-signature": request.get("webhook-signature") };
  const inserted = await run(client, "event", `insert into billing.webhook_events
      (provider, event_id, order_id, transaction_id, status, amount, signed, raw, told, outcome, received_at, last_received_at, headers)
    values ($1, $2, $3, $4, 'paid', $5, true, $6, $7, 'received', $8, $8, $9) on conflict (provider, event_id) do nothing`,
    [`express-${provider}`, id, orderId, transactionId, Math.round(notice.amount * 100), request.body, JSON.stringify(notice), now, JSON.stringify(headers)]);
  if (inserted.rowCount === 0) {
    const earlier = await run(client, "again", `update billing.webhook_events set deliveries = deliveries + 1, last_received_at = $3
      where provider = $1 and event_id = $2 returning order_id, order_state`, [`express-${provider}`, id, now]);
    return { received: true, duplicate: true, orderId: earlier.rows[0].order_id, status: earlier.rows[0].order_state };
  }
  const order = (await run(client, "order", "select * from billing.orders where id = $1 for no key update", [orderId])).rows[0];
  if (!order) {
    await run(client, "unknown", "update billing.webhook_events set outcome = 'unknown_order' where provider = $1 and event_id = $2",
      [`express-${provider}`, id]);
    return null;
  }
  if (order.state !== "PENDING" || Number(order.final_amount) !== Math.round(notice.amount * 100)) throw new Error("not payable");
  const payment = randomUUID(), movement = randomUUID(), event = randomUUID();
  await run(client, "paid", `update billing.orders set state = 'PAID', paid_at = $2, updated_at = $2, payment_method = $3, transaction_id = $4
    where id = $1 and state = 'PENDING' returning *`, [orderId, now, provider, transactionId]);
  await run(client, "payment", `insert into billing.payments
      (id, payment_no, order_id, user_id, amount, method, status, applied, transaction_id, paid_at, expires_at, created_at, updated_at)
    values ($1, 'PAY' || to_char($2::timestamptz at time zone 'UTC', 'YYMMDDHH24MISS')
        || lpad((nextval('billing.payment_numbers') % 100000000)::text, 8, '0'), $3, $4, $5, $6, 'success', true, $7, $2, $2, $2, $2) returning *`,
    [payment, now, orderId, order.user_id, order.final_amount, provider, transactionId]);
  await run(client, "cancel", `update billing.payments set status = 'cancelled', updated_at = $2
    where order_id = $1 and status in ('pending', 'processing')`, [orderId, now]);
  await run(client, "movement", `insert into billing.transactions (id, user_id, type, amount, description, order_id, payment_id, created_at)
    values ($1, $2, 'payment', $3, $4, $5, $6, $7)`,
    [movement, order.user_id, order.final_amount, `order ${order.order_no}: ${order.plan_name}`, orderId, payment, now]);
  await run(client, "postings", `insert into billing.postings (transaction_id, leg, account_id, amount)
    values ($1, 1, 'cash_in', -$2::bigint), ($1, 2, 'revenue', $2)`, [movement, order.final_amount]);
  await run(client, "outbox", "insert into platform.outbox (id, kind, event, due_at) values ($1, 'order.paid', $2, $3)",
    [event, JSON.stringify({ id: event, kind: "order.paid", userId: order.user_id, orderId, amount: notice.amount, planId: order.plan_id }), now]);
  await run(client, "concluded", `update billing.webhook_events set outcome = 'paid', order_state = 'PAID' where provider = $1 and event_id = $2`,
    [`express-${provider}`, id]);
  return { received: true, duplicate: false, orderId, status: "PAID" };
}

app.post("/webhooks/payment", express.raw({ type: "application/json", limit: "1mb" }), async (request, response) => {
  const id = verify(request);
  if (!id) return response.status(401).json({ error: "BAD_SIGNATURE" });
  const client = await pool.connect();
  try {
    await client.query("begin");
    const receipt = await settle(client, id, request, JSON.parse(request.body));
    await client.query("commit");
    if (receipt) response.json(receipt);
    else response.status(404).json({ error: "ORDER_NOT_FOUND" });
  } catch (error) {
    await client.query("rollback").catch(() => {});
    response.status(500).json({ error: error.message });
  } finally {
    client.release();
  }
});
app.listen(Number(PORT), "127.0.0.1", 4096);
