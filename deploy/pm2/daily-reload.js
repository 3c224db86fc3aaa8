// Reloads the applications named by its arguments each day at DAILY_RELOAD_AT (HH:MM, the machine's time), one replica
// after the other. PM2's own `cron_restart` stops all replicas of a service at the same moment.

const pm2 = require('./command.js');

const [hours, minutes, seconds = 0] = process.env.DAILY_RELOAD_AT.split(':').map(Number);

const wait = () => {
  const at = new Date();
  at.setHours(hours, minutes, seconds, 0);
  if (at <= Date.now()) at.setDate(at.getDate() + 1);
  console.log(`reloading at ${at}`);
  setTimeout(reload, at - Date.now());
};

const reload = () => {
  for (const name of process.argv.slice(2)) {
    try {
      pm2('reload', name, '--parallel', '1');
      console.log(`${name} was reloaded`);
    } catch (error) {
      console.error(error.message);
    }
  }
  wait();
};

wait();
