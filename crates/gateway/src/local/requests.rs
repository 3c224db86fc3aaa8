//! What became of a request, for an administrator: which instance, which retry, which limit, and why it was refused.

use axum::extract::State;
use contracts::Service;
use platform::Problem;
use platform::auth::Caller;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;

use super::Local;
use crate::explain::{Explanation, Found, gateways};

/// What became of the requests of an id, as the gateways that they went through remember it.
///
/// They do so for `DECISION_LOG_SECONDS`, and for the latest `DECISION_LOG_REQUESTS`.
#[utoipa::path(get, path = "/gateway/requests/{id}", tag = "gateway", params(("id" = String, Path, description = "the X-Request-ID of the answer")), responses(
    (status = 200, body = Explanation), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn explain_request(
    State(local): State<Local>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, Problem> {
    let asks_others = match caller {
        Caller::User(user) if user.is_admin => true,
        // Another replica asks all of them by itself.
        Caller::Service(Service::Gateway) => false,
        Caller::User(_) | Caller::Service(_) => {
            return Err(Problem::forbidden("the role admin is required"));
        }
        Caller::Sandbox => {
            return Err(Problem::unauthenticated(
                "sign in: a bearer token is required",
            ));
        }
    };
    let mut known = local.remembered(&id);
    if asks_others {
        known.join(local.siblings_remember(&id).await);
    }
    match known.silent.len() {
        _ if !known.requests.is_empty() => Ok(Json(known)),
        0 => Err(Problem::not_found("request")),
        silent => Err(Problem::not_ready(format!(
            "no gateway that answered knows the request, but {silent} did not answer; try again"
        ))),
    }
}

impl Local {
    fn remembered(&self, id: &str) -> Explanation {
        let gateway = self.platform.instance(Service::Gateway);
        let found = self.decisions.find(id).into_iter().map(|record| Found {
            gateway: gateway.clone(),
            record,
        });
        Explanation {
            requests: found.collect(),
            silent: Vec::new(),
        }
    }

    async fn siblings_remember(&self, id: &str) -> Explanation {
        let snapshot = self.snapshots.borrow().clone();
        let ours = self.platform.instance(Service::Gateway);
        let mut siblings = gateways(&snapshot);
        siblings.retain(|entry| entry.instance != ours);
        let (auth, now) = (&self.platform.auth, self.platform.clock.now());
        let sign = |method: &http::Method, path: &str| {
            auth.service_credential(Service::Gateway, now, method, path)
        };
        self.inquiry.ask(&siblings, id, sign).await
    }
}
