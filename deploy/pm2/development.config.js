// pm2 start ecosystem.config.development.js
//
// The program that was built last, with a private Redis and PostgreSQL below .cloudphone/ of the project unless REDIS_URL and
// DATABASE_URL name others. CLOUDPHONE_GATEWAY names another program.

const { statSync } = require('node:fs');
const path = require('node:path');
const apps = require('./apps.js');

const project = path.resolve(__dirname, '../..');
const built = () => {
  const age = (file) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  const programs = ['release', 'debug'].map((profile) => path.join(project, 'target', profile, 'gateway'));
  return programs.sort((a, b) => age(b) - age(a))[0];
};
const home = path.resolve(project, process.env.CLOUDPHONE_HOME || '.cloudphone');

module.exports = apps({
  program: process.env.CLOUDPHONE_GATEWAY || built(),
  options: ['--env-file', path.join(project, 'deploy/config/development.env')],
  folder: project,
  logs: path.join(home, 'logs'),
  env: {
    CLOUDPHONE_HOME: home,
    OBJECTS_FOLDER: path.join(home, 'objects'),
    LOG_FORMAT: 'text',
    // Of these, 21 processes: the private PostgreSQL takes 300 connections.
    DATABASE_POOL_MIN: '1',
    DATABASE_POOL_MAX: '10',
  },
});
