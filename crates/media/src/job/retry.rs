//! What follows on an attempt that led to nothing.

use std::time::Duration;

use super::remote::{FAILURES, UNCLEAR};
use super::{Fault, Work, pause_after};
use crate::provider::Provider;

/// How long to wait for a provider that has its fill, or rests.
const BUSY: Duration = Duration::from_secs(2);

/// What follows.
#[derive(Debug)]
pub enum Next {
    /// Another attempt.
    Again {
        after: Duration,
        error: Option<String>,
        /// Who may have taken it.
        provider: Option<String>,
        excluded: Vec<String>,
        failures: i16,
    },
    /// None.
    Never { code: &'static str, message: String },
}

impl Fault {
    /// The same, met on the way to a provider. What is known of a row of the job before the attempt is not of use then.
    pub fn at(self, provider: &Provider) -> Self {
        match self {
            Self::Unclear { message, .. } => Self::Unclear {
                message,
                provider: Some(provider.name().to_owned()),
            },
            Self::NotTaken { message, .. } => Self::NotTaken {
                message,
                provider: Some(provider.name().to_owned()),
            },
            Self::Elsewhere { message, .. } => Self::Elsewhere {
                message,
                provider: Some(provider.name().to_owned()),
            },
            // Nothing was sent.
            fault @ (Self::Passing { .. } | Self::Lasting { .. } | Self::Busy) => fault,
        }
    }

    /// What follows on it.
    pub fn next(self, work: &Work) -> Next {
        let failures = work.failures.saturating_add(1);
        let excluding = |provider: Option<String>| {
            let mut excluded = work.excluded.clone();
            excluded.extend(provider);
            excluded
        };
        match self {
            Self::Lasting { code, message } => Next::Never { code, message },
            Self::Passing { code, message } => {
                // Elsewhere each claim may be one of many; what is made here is not claimed for ever.
                let attempt = match work.provider {
                    Some(_) => failures,
                    None => work.attempt.max(failures),
                };
                match pause_after(attempt) {
                    Some(after) => Next::Again {
                        after,
                        error: Some(message),
                        provider: work.provider.clone(),
                        excluded: work.excluded.clone(),
                        failures,
                    },
                    None => Next::Never { code, message },
                }
            }
            Self::Busy => Next::Again {
                after: BUSY,
                error: None,
                provider: None,
                excluded: work.excluded.clone(),
                failures: work.failures,
            },
            Self::NotTaken { message, provider } if failures > FAILURES => {
                Self::Elsewhere { message, provider }.next(work)
            }
            Self::NotTaken { message, .. } => Next::Again {
                after: pause_after(failures).unwrap_or(BUSY),
                error: Some(message),
                provider: None,
                excluded: work.excluded.clone(),
                failures,
            },
            Self::Elsewhere { message, provider } => Next::Again {
                after: Duration::ZERO,
                error: Some(message),
                provider: None,
                excluded: excluding(provider),
                failures: 0,
            },
            Self::Unclear { message, provider } if failures > UNCLEAR => {
                match work.kind.may_run_twice() {
                    true => Self::Elsewhere { message, provider }.next(work),
                    false => Next::Never {
                        code: "PROVIDER_UNCLEAR",
                        message,
                    },
                }
            }
            Self::Unclear { message, provider } => Next::Again {
                after: pause_after(failures.min(3)).unwrap_or(BUSY),
                error: Some(message),
                provider: provider.or_else(|| work.provider.clone()),
                excluded: work.excluded.clone(),
                failures,
            },
        }
    }
}
