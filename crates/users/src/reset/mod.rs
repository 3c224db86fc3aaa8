//! Forgotten passwords. Whoever asks is answered the same at once, whether there is such an account or not; a job looks for it, and
//! mails a token that sets another password, once, within half an hour. The token is made when its mail is sent, and only its hash
//! is stored: it stands in no queue, event or log.

pub mod api;
mod db;
mod sender;

pub use sender::{run_jobs, spawn_jobs};
