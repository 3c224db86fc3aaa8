// What PM2 runs, in development and in production alike: every service as several replicas, each a process of its own.
//
// - Replicas of a service share its port by themselves and hand it over when one leaves, so PM2 must not cluster them
//   (`fork`), must wait until each is ready, and must leave it the time to finish what it has.
// - Three of each: `pm2 reload` and `pm2 restart` take two at a time where there are more than two, and one has to stay.
// - `treekill: false`: the private stores of development are children of the replica that started them, and outlive it.

const services = {
  'api-gateway': 'gateway',
  'user-service': 'users',
  'device-service': 'devices',
  'app-service': 'apps',
  'media-service': 'media',
  'billing-service': 'billing',
  'notification-service': 'notifications',
};

/**
 * The applications, and one that reloads all of them each day.
 *
 * @param {object} options
 * @param {string} options.program the path of the program
 * @param {string[]} options.options what comes before `serve`, as `--env-file`
 * @param {string} options.folder where they run
 * @param {string} options.logs where PM2 writes what they say
 * @param {Record<string, string>} options.env settings
 */
module.exports = ({ program, options, folder, logs, env }) => {
  const log = (name) => ({
    out_file: `${logs}/${name}.out.log`,
    error_file: `${logs}/${name}.error.log`,
    // One file for all replicas of a service.
    merge_logs: true,
    log_date_format: 'YYYY-MM-DD HH:mm:ss.SSS Z',
  });
  const apps = Object.entries(services).map(([name, service]) => ({
    name,
    script: program,
    args: [...options, 'serve', '--services', service],
    cwd: folder,
    env,
    interpreter: 'none',
    exec_mode: 'fork',
    instances: 3,
    wait_ready: true,
    listen_timeout: 90000,
    kill_timeout: 40000,
    treekill: false,
    watch: false,
    max_memory_restart: '600M',
    exp_backoff_restart_delay: 200,
    // The configuration is wrong: to start again would not make it right. (PM2 shows `waiting restart`, and does not.)
    stop_exit_codes: [78],
    ...log(name),
  }));
  const daily = {
    name: 'daily-reload',
    script: `${__dirname}/daily-reload.js`,
    args: Object.keys(services),
    exec_mode: 'fork',
    env: { DAILY_RELOAD_AT: process.env.DAILY_RELOAD_AT || '04:00' },
    ...log('daily-reload'),
  };
  return { apps: [...apps, daily] };
};
