//! Where a request came from, known to whatever is done for it without being handed on from function to function.

use std::net::IpAddr;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header;
use platform::http::{ClientAddress, RequestId};

/// The longest path and the longest name of a client that are kept.
const MOST_BYTES: usize = 500;

/// Where a request came from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub method: Option<String>,
    /// Without the query, in which secrets may stand.
    pub path: Option<String>,
    pub address: Option<String>,
    pub agent: Option<String>,
    pub request_id: Option<String>,
}

tokio::task_local! {
    static ORIGIN: Origin;
}

impl Origin {
    fn of(request: &Request, address: IpAddr) -> Self {
        let agent = request.headers().get(header::USER_AGENT);
        let request_id = request.extensions().get::<RequestId>();
        Self {
            method: Some(request.method().to_string()),
            path: Some(cut(request.uri().path())),
            address: Some(address.to_string()),
            agent: agent.and_then(|agent| agent.to_str().ok()).map(cut),
            request_id: request_id.map(|id| cut(&id.0)),
        }
    }
}

/// Keeps the origin of a request for as long as it is worked on.
pub async fn remember(
    ClientAddress(address): ClientAddress,
    request: Request,
    next: Next,
) -> Response {
    let origin = Origin::of(&request, address);
    ORIGIN.scope(origin, next.run(request)).await
}

/// The origin of the request under way; nothing in a job.
pub fn current() -> Origin {
    ORIGIN.try_with(Clone::clone).unwrap_or_default()
}

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(MOST_BYTES);
    text[..end].replace('\0', "")
}
