//! Which requests may be sent again after they were sent: those that have no effect, or have it once however often they
//! come.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The routes that have their effect once for one `Idempotency-Key`; on all others the header means nothing.
#[derive(Clone, Debug, Default)]
pub struct Keyed(Arc<[(Method, String)]>);

impl Keyed {
    /// Routes such as `POST /orders/{id}/refund`.
    pub fn new(routes: impl IntoIterator<Item = (Method, String)>) -> Self {
        Self(routes.into_iter().collect())
    }

    /// Whether a request may be sent again.
    pub fn may_repeat(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        method.is_safe() || (headers.contains_key(IDEMPOTENCY_KEY) && self.has(method, path))
    }

    fn has(&self, method: &Method, path: &str) -> bool {
        let mut routes = self.0.iter().filter(|(known, _)| known == method);
        routes.any(|(_, route)| fits(route, path))
    }
}

fn fits(route: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (route.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(wanted), Some(given)) if wanted == given => {}
            (Some(wanted), Some(given)) if wanted.starts_with('{') && !given.is_empty() => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_key_counts_only_where_the_route_honours_it() {
        let routes = ["/orders", "/orders/{id}/refund"];
        let keyed = Keyed::new(routes.map(|path| (Method::POST, path.to_owned())));
        let key = HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_static("k"))]);
        for (method, path, with_key, without) in [
            (Method::GET, "/devices", true, true),
            (Method::POST, "/orders", true, false),
            (Method::POST, "/orders/7/refund", true, false),
            (Method::POST, "/orders//refund", false, false),
            (Method::POST, "/orders/7", false, false),
            (Method::POST, "/orders/7/refund/8", false, false),
            (Method::DELETE, "/orders", false, false),
            (Method::POST, "/devices/7/start", false, false),
        ] {
            assert_eq!(keyed.may_repeat(&method, path, &key), with_key, "{path}");
            let bare = keyed.may_repeat(&method, path, &HeaderMap::new());
            assert_eq!(bare, without, "{path}");
        }
    }
}
