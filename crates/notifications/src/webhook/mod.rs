//! Webhooks: where a user's own programs want to be called.

pub mod api;
pub mod db;
