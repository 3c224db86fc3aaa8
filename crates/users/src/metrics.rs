//! What is counted.

use metrics::counter;

/// Somebody tried to sign in.
pub fn login_attempted() {
    counter!("cloudphone_user_login_attempts_total").increment(1);
}

/// A sign-in was refused.
pub fn login_failed() {
    counter!("cloudphone_user_login_failures_total").increment(1);
}
