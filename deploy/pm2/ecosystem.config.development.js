// pm2 start ecosystem.config.development.js: what development.config.js has.
require('./start.js')(`${__dirname}/development.config.js`);
