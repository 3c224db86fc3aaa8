//! The devices service through its URLs, against real stores.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod access;
mod adb;
mod app;
mod batch;
mod broken;
mod cluster;
mod commands;
mod creation;
mod deadlines;
mod docker;
mod down;
mod engines;
mod failover;
mod heartbeats;
mod hosting;
mod installations;
mod invariants;
mod kubernetes;
mod life_cycle;
mod lifecycle;
mod lists;
mod many;
mod measures;
mod moves;
mod nodes;
mod occupied;
mod passage;
mod placement;
mod ports;
mod queue;
mod quotas;
mod reconciliation;
mod refusals;
mod remote;
mod snapshots;
mod tunnels;
