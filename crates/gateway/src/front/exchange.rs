//! One request and its tries: on which instances, how long, and what is done when one fails.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use platform::http::DEADLINE;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use crate::front::body::{Outgoing, Progress, Stage};
use crate::front::choice::Load;
use crate::front::connections::{Held, SendError};
use crate::front::group::Group;
use crate::front::instance::{Instance, Reason};
use crate::front::metrics;
use crate::front::record;
use crate::front::recording::Recording;
use crate::front::refusal::Refusal;

/// Tries after the first one.
const RETRIES: u32 = 3;
/// When every instance refused, they get a moment before they are asked again; longer each time.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the head of the reply is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Until this moment.
    Until(Instant),
    /// As long as the body of the request never stands still for longer.
    WhileMoving(Duration),
}

/// One request to a service.
pub struct Exchange<'a> {
    pub group: &'a Group,
    pub patience: Patience,
    pub progress: &'a Progress,
    /// Whether it may be sent again after it was sent.
    pub repeatable: bool,
    /// The only instance that can answer, where there is one.
    pub home: Option<Arc<Instance>>,
    /// By what instances are compared.
    pub load: Load,
    /// Whether the time until the reply begins is the instance's own.
    pub timed: bool,
    /// How long one try may take when there is another instance to try.
    pub try_within: Duration,
}

/// What came of one try.
enum Outcome {
    Answered(Response<Incoming>, Held),
    Failed(SendError),
    Late,
}

impl Outcome {
    fn tell(&self, recording: &mut Recording) {
        let (outcome, status, error) = match self {
            Self::Answered(response, _) => {
                let outcome = match response.status() {
                    StatusCode::MISDIRECTED_REQUEST => record::Outcome::Misdirected,
                    _ => record::Outcome::Answered,
                };
                (outcome, Some(response.status()), None)
            }
            Self::Failed(error @ SendError::Unsent(..)) => {
                (record::Outcome::Unreached, None, Some(error.to_string()))
            }
            Self::Failed(error @ SendError::Broken { .. }) => {
                (record::Outcome::BrokeOff, None, Some(error.to_string()))
            }
            Self::Late => (record::Outcome::Late, None, None),
        };
        recording.try_ended(outcome, status, error);
    }
}

impl Exchange<'_> {
    /// Sends the request until an instance answers, it may not be sent again, or time is up.
    pub async fn run(
        &self,
        mut request: Request<Outgoing>,
        recording: &mut Recording,
    ) -> Result<(Response<Incoming>, Held), Refusal> {
        let mut tried = Vec::new();
        let mut retries = 0;
        loop {
            let Some(instance) = self
                .home
                .clone()
                .or_else(|| self.group.pick(&tried, self.load))
            else {
                if tried.is_empty() {
                    return Err(Refusal::Down);
                }
                tried.clear();
                sleep(PAUSE * retries).await;
                continue;
            };
            let spare = if retries < RETRIES {
                again(&request)
            } else {
                None
            };
            tried.push(instance.clone());
            let another = self.repeatable && spare.is_some() && self.group.has_other(&tried);

            recording.try_begins(&instance);
            let sent_at = Instant::now();
            let patience = self.patience(another, sent_at);
            tell(request.headers_mut(), patience, sent_at);
            let outcome = tokio::select! {
                biased;
                sent = instance.send(request) => match sent {
                    Ok((response, held)) => Outcome::Answered(response, held),
                    Err(error) => Outcome::Failed(error),
                },
                () = self.wait(patience) => Outcome::Late,
            };
            outcome.tell(recording);
            let (refusal, next) = match outcome {
                // Another service has the address of an instance that is gone, and has done nothing.
                Outcome::Answered(response, _)
                    if response.status() == StatusCode::MISDIRECTED_REQUEST =>
                {
                    debug!(
                        upstream.id = instance.id,
                        "{} is another service's", instance.address
                    );
                    self.blame(&instance, instance.refused(std::time::Instant::now()));
                    if self.home.is_some() {
                        return Err(Refusal::UnknownSession);
                    }
                    (Refusal::Down, spare)
                }
                Outcome::Answered(response, held) => {
                    instance.answered();
                    self.group.breaker.answered();
                    if !response.status().is_server_error() {
                        self.note(&instance, sent_at);
                    }
                    let elsewhere = matches!(
                        response.status(),
                        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE
                    );
                    match spare {
                        Some(spare)
                            if another
                                && elsewhere
                                && !self.is_over()
                                && self.group.budget.spend() =>
                        {
                            metrics::retried(self.group.service);
                            retries += 1;
                            request = spare;
                            continue;
                        }
                        _ => return Ok((response, held)),
                    }
                }
                Outcome::Failed(SendError::Unsent(unsent, error)) => {
                    debug!(
                        upstream.id = instance.id,
                        "{} refused: {error}", instance.address
                    );
                    self.blame(&instance, instance.refused(std::time::Instant::now()));
                    if self.home.is_some() {
                        return Err(Refusal::UnknownSession);
                    }
                    (Refusal::Down, (retries < RETRIES).then_some(*unsent))
                }
                Outcome::Failed(SendError::Broken { error, reused }) => {
                    match self.progress.stage() {
                        Stage::TooLarge => return Err(Refusal::TooLarge),
                        Stage::BrokenOff => return Err(Refusal::BodyTimeout),
                        Stage::Sending | Stage::Sent => {}
                    }
                    debug!(
                        upstream.id = instance.id,
                        "{} broke off: {error}", instance.address
                    );
                    if reused {
                        // It closed an idle connection at the moment we used it, which is no fault; a new one may do.
                        tried.pop();
                    } else {
                        self.blame(&instance, instance.failed());
                    }
                    let again = spare.filter(|_| self.repeatable && self.group.budget.spend());
                    (Refusal::Broken, again)
                }
                Outcome::Late if self.client_was_slow() => return Err(Refusal::BodyTimeout),
                Outcome::Late => {
                    self.note(&instance, sent_at);
                    self.blame(&instance, instance.failed());
                    (
                        Refusal::Timeout,
                        spare.filter(|_| another && self.group.budget.spend()),
                    )
                }
            };
            match next {
                Some(next) if !self.is_over() => {
                    metrics::retried(self.group.service);
                    retries += 1;
                    request = next;
                }
                _ => {
                    self.group.breaker.failed(std::time::Instant::now());
                    return Err(refusal);
                }
            }
        }
    }

    /// How long this try may take.
    fn patience(&self, another: bool, sent_at: Instant) -> Patience {
        match self.patience {
            Patience::Until(deadline) if another => {
                Patience::Until(deadline.min(sent_at + self.try_within))
            }
            patience => patience,
        }
    }

    /// Ends when this try has taken too long.
    async fn wait(&self, patience: Patience) {
        match patience {
            Patience::Until(deadline) => sleep_until(deadline).await,
            Patience::WhileMoving(idle) => loop {
                let until = self.progress.moved() + idle;
                if until <= Instant::now() {
                    return;
                }
                sleep_until(until).await;
            },
        }
    }

    /// Whether the body of the request took more than half of the time, so that the instance is not to blame.
    fn client_was_slow(&self) -> bool {
        let took = self.progress.moving();
        let bounded = matches!(self.patience, Patience::Until(_));
        self.progress.stage() == Stage::Sending
            || (bounded && self.progress.moved().elapsed() < took)
    }

    fn is_over(&self) -> bool {
        matches!(self.patience, Patience::Until(deadline) if deadline <= Instant::now())
    }

    /// Notes how long the instance took to begin its reply; a quick failure says nothing of that.
    fn note(&self, instance: &Instance, sent_at: Instant) {
        if self.timed {
            instance.latencies.note(sent_at.elapsed());
        }
    }

    fn blame(&self, instance: &Instance, often: bool) {
        if often {
            self.group.eject(instance, Reason::Failures);
        }
    }
}

/// Tells the instance how long this try may take, rounded up; what the client said on that is replaced.
fn tell(headers: &mut HeaderMap, patience: Patience, sent_at: Instant) {
    let Patience::Until(deadline) = patience else {
        headers.remove(DEADLINE);
        return;
    };
    let left = deadline.saturating_duration_since(sent_at).as_micros();
    let left = u64::try_from(left.div_ceil(1000)).unwrap_or(u64::MAX);
    headers.insert(DEADLINE, HeaderValue::from(left));
}

/// The same request once more, where its body allows.
fn again(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let mut copy = Request::new(request.body().again()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
