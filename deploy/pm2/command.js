// PM2's command, from within an application of PM2.

const { spawnSync } = require('node:child_process');

// What PM2 tells an application of itself (in small letters, mostly) would become the settings of those that it has started.
const own = ['NODE_APP_INSTANCE', 'NODE_CHANNEL_FD', 'NODE_CHANNEL_SERIALIZATION_MODE', 'PM2_JSON_PROCESSING', 'PM2_USAGE'];
const env = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => (/^[A-Z]/.test(name) || /_proxy$/.test(name)) && !own.includes(name)),
);

/** Runs `pm2` with some arguments; its output, or an error. */
module.exports = (...args) => {
  const done = spawnSync('pm2', args, { env, encoding: 'utf8', maxBuffer: 1 << 26, stdio: ['ignore', 'pipe', 'inherit'] });
  if (done.error) throw done.error;
  if (done.status !== 0) throw new Error(`pm2 ${args.join(' ')}: exit code ${done.status}\n${done.stdout}`);
  return done.stdout;
};
