// pm2 start ecosystem.config.production.js
//
// The program at /opt/cloudphone/current/gateway, where `current` is a link to a version's folder, with the settings of
// /etc/cloudphone/production.env (begun as deploy/config/production.env). CLOUDPHONE_GATEWAY, CLOUDPHONE_ENV_FILE and
// CLOUDPHONE_LOGS name others.

const apps = require('./apps.js');

module.exports = apps({
  program: process.env.CLOUDPHONE_GATEWAY || '/opt/cloudphone/current/gateway',
  options: ['--env-file', process.env.CLOUDPHONE_ENV_FILE || '/etc/cloudphone/production.env'],
  folder: '/',
  logs: process.env.CLOUDPHONE_LOGS || '/var/log/cloudphone',
  // JSON, as LOG_FORMAT=json of the file has it, behind PM2's time.
  env: {},
});
