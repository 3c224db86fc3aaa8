// pm2 start ecosystem.config.production.js: what production.config.js has.
require('./start.js')(`${__dirname}/production.config.js`);
