//! The whole cluster from outside: several replicas as processes, real stores, real clients, real faults.

mod access;
mod authorisation;
mod checklist;
mod connections;
mod cron;
mod docs;
mod expiry;
mod explain;
mod faults;
mod files;
mod installation;
mod nodes;
mod notices;
mod payments;
mod polling;
mod ports;
mod refusals;
mod reload;
mod restart;
mod resumption;
mod revocation;
mod rolling;
mod sockets;
mod startup;
