//! Which requests become sockets. It stands around the finished router, outside of its deadline.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::uri::PathAndQuery;
use http::{StatusCode, Uri, header};

use crate::Notifications;

/// Where a plain WebSocket is let in.
pub const PLAIN_PATH: &str = "/ws/notifications";
const PLAIN_PATHS: [&str; 2] = ["/notifications", PLAIN_PATH];
const LIST_PATH: &str = "/notifications";
const SOCKETIO_PATH: &str = "/socket.io/";

/// Puts the sockets around a finished router.
pub fn wrap(router: Router, state: &Notifications) -> Router {
    // Only a layer around a router without routes of its own sees the request before it is routed.
    Router::new()
        .fallback_service(router)
        .layer(from_fn_with_state(state.clone(), direct))
}

/// Sends each request to the path under which it is served.
async fn direct(State(state): State<Notifications>, mut request: Request, next: Next) -> Response {
    let upgrades = asks_for_websocket(&request);
    let Some(path) = served_at(request.uri(), upgrades) else {
        return next.run(request).await;
    };
    if path == SOCKETIO_PATH && state.hub.is_leaving() {
        // A client that is refused here tries again, by then elsewhere.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(
            header::CONNECTION,
            header::HeaderValue::from_static("close"),
        );
        return response;
    }
    if path != request.uri().path() {
        let target = request
            .uri()
            .query()
            .map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        if let Ok(target) = PathAndQuery::try_from(target) {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(target);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    if path == SOCKETIO_PATH {
        return state.socketio.serve(request, upgrades).await;
    }
    next.run(request).await
}

fn asks_for_websocket(request: &Request) -> bool {
    let upgrade = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
}

/// Where a request is served that may be one for a socket.
fn served_at(uri: &Uri, upgrades: bool) -> Option<&'static str> {
    let path = uri.path().trim_end_matches('/');
    let speaks_engine_io = || {
        uri.query()
            .is_some_and(|query| query.split('&').any(|pair| pair == "EIO=4"))
    };
    match path {
        "/socket.io" => Some(SOCKETIO_PATH),
        "" | "/ws" if speaks_engine_io() => Some(SOCKETIO_PATH),
        _ if PLAIN_PATHS.contains(&path) && upgrades => Some(PLAIN_PATH),
        PLAIN_PATH => Some(LIST_PATH),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_in_leads_to_its_transport() {
        for (uri, upgrades, expected) in [
            (
                "/socket.io/?EIO=4&transport=polling",
                false,
                Some(SOCKETIO_PATH),
            ),
            ("/socket.io?EIO=4", true, Some(SOCKETIO_PATH)),
            ("/ws/?EIO=4&transport=websocket", true, Some(SOCKETIO_PATH)),
            ("/?EIO=4&transport=websocket", true, Some(SOCKETIO_PATH)),
            ("/?EIO=44", true, None),
            ("/notifications", true, Some(PLAIN_PATH)),
            ("/notifications/?lastSeq=1", true, Some(PLAIN_PATH)),
            ("/ws/notifications", true, Some(PLAIN_PATH)),
            ("/ws/notifications", false, Some(LIST_PATH)),
            ("/notifications", false, None),
            ("/notifications/stream", false, None),
        ] {
            assert_eq!(
                served_at(&uri.parse().unwrap(), upgrades),
                expected,
                "{uri}"
            );
        }
    }

    #[test]
    fn any_path_leads_to_one_transport_or_to_none() {
        const WORDS: [&str; 12] = [
            "/",
            "/ws",
            "/socket.io",
            "/notifications",
            "/stream",
            "?",
            "EIO=4",
            "&",
            "EIO=3",
            "/..",
            "//",
            "x",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = format!("/{}", testkit::any::text(bytes, &WORDS));
                let Ok(uri) = text.parse::<Uri>() else { return };
                for upgrades in [false, true] {
                    let served = served_at(&uri, upgrades);
                    assert!(
                        served.is_none_or(
                            |path| [SOCKETIO_PATH, PLAIN_PATH, LIST_PATH].contains(&path)
                        ),
                        "{text}"
                    );
                    assert!(served != Some(PLAIN_PATH) || upgrades, "{text}");
                    // Somebody else's path stays theirs.
                    let owned = ["/socket.io", "/ws", "/notifications"]
                        .iter()
                        .any(|own| uri.path().starts_with(own));
                    assert!(
                        served.is_none() || owned || uri.path().chars().all(|one| one == '/'),
                        "{text}"
                    );
                }
            });
    }
}
