// PM2 knows a configuration by `.config.js` in its name, and runs `ecosystem.config.development.js` as a program. That program
// is this: it has PM2 start what is missing of a configuration, and then leaves PM2's list.

const pm2 = require('./command.js');

module.exports = (configuration) => {
  const self = process.env.pm_id;
  if (self === undefined) {
    console.error(`to be started by PM2: pm2 start ${configuration}`);
    process.exit(64);
  }
  try {
    const listed = pm2('jlist');
    const there = new Set(JSON.parse(listed.slice(listed.lastIndexOf('\n[') + 1)).map(({ name }) => name));
    const missing = require(configuration).apps.map(({ name }) => name).filter((name) => !there.has(name));
    if (missing.length > 0) console.log(pm2('start', configuration, '--only', missing.join(',')));
    pm2('delete', self);
  } catch (error) {
    console.error(error.message);
    // It stays in the list as stopped, and its log tells why.
    pm2('stop', self);
  }
};
