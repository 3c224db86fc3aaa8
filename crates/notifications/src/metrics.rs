//! What is counted.

use metrics::{counter, gauge};

use crate::notification::Channel;

/// Counts a notification that was stored and handed to the sockets.
pub fn notification_sent() {
    counter!("cloudphone_notifications_sent_total").increment(1);
}

/// Says how many users have sockets on this instance.
pub fn users_online(count: usize) {
    gauge!("cloudphone_notification_users_online").set(count as f64);
}

/// Counts an attempt to deliver by a way that leads out of the platform: sent, retried or failed.
pub fn delivery(channel: Channel, result: &'static str) {
    counter!("cloudphone_notification_deliveries_total", "channel" => channel.name(), "result" => result).increment(1);
}

/// Counts a template that could not be filled in, so that a notification has the built-in words.
pub fn template_failed(event: &'static str) {
    counter!("cloudphone_notification_template_failures_total", "event" => event).increment(1);
}

/// Counts a socket that was cut before its client wanted to leave.
pub fn socket_cut(reason: &'static str) {
    counter!("cloudphone_sockets_cut_total", "reason" => reason).increment(1);
}

/// Counts frames of a user that came by the sweep, because the news of them was lost on the way.
pub fn swept(frames: usize) {
    counter!("cloudphone_notifications_swept_total").increment(frames as u64);
}

/// Counts an open socket for as long as it lives.
#[derive(Debug)]
pub struct OpenSocket(&'static str);

impl OpenSocket {
    /// A socket of a transport was opened.
    pub fn new(transport: &'static str) -> Self {
        gauge!("cloudphone_sockets_open", "transport" => transport).increment(1);
        Self(transport)
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        gauge!("cloudphone_sockets_open", "transport" => self.0).decrement(1);
    }
}
