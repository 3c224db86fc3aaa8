//! Every fault of the stores, the network, the processes and the clock, against three real replicas under load.
//!
//! Each test breaks something while clients rent devices and pay, mends nothing in the replicas, and asks PostgreSQL and
//! the devices' own ports in the end ([`audit`]): no port is given twice, no slot of a cron runs twice, no order is paid
//! twice, nothing that was acknowledged is lost, and the system serves again without help.

mod audit;
mod clock;
mod engines;
mod kills;
mod load;
mod money;
mod postgres;
mod redis;
mod redis_cluster;
mod redlock;
mod sentinel;
mod tls;
mod wire;
