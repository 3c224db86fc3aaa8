//! Which request goes where: by the first segments of its path, longest match first.

use std::borrow::Cow;

use contracts::Service;
use http::uri::PathAndQuery;
use http::{Method, Uri};

use crate::front::sticky::EngineQuery;

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the gateway's own router.
    Local,
    /// To an instance of a service.
    Service(Service),
    /// Nowhere: nothing is there, or it is not for the outside.
    Nowhere,
}

/// What kind of exchange a request begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A small body and a prompt reply.
    Plain,
    /// A body of any size, which may take its time.
    Upload,
    /// A command on a device, which takes as long as its caller allows.
    Command,
    /// A tunnel to a device. Its ticket is used up by the first instance that gets it.
    Tunnel,
    /// A request of a Socket.IO transport.
    Engine(EngineQuery),
}

/// A request's way.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where it goes.
    pub target: Target,
    /// The path it asks for there, with the query as it came.
    pub path: PathAndQuery,
    /// What kind of exchange it begins.
    pub kind: Kind,
}

/// Finds the way of a request.
pub fn route(method: &Method, uri: &Uri) -> Route {
    let came = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let path = bare(came.path());
    if came.path().contains("//") || has_dots(path) {
        return Route {
            target: Target::Nowhere,
            path: came,
            kind: Kind::Plain,
        };
    }
    let mut segments = path.trim_start_matches('/').split('/');
    let (first, second) = (segments.next().unwrap_or_default(), segments.next());

    let engine = match first {
        "socket.io" | "ws" => EngineQuery::read(came.query()),
        "" if path == "/" => EngineQuery::read(came.query()).filter(|query| query.version == 4),
        _ => None,
    };
    if let Some(query) = engine {
        // These servers know their path with and without the slash, and clients ask with it.
        let path = join(unprefixed(came.path()), &came);
        return Route {
            target: Target::Service(Service::Notifications),
            path,
            kind: Kind::Engine(query),
        };
    }
    let third = segments.next().filter(|_| segments.next().is_none());
    let kind = match (first, second, third) {
        ("apps", Some("upload"), _) | ("media", Some("uploads"), _)
            if *method == Method::POST || *method == Method::PUT =>
        {
            Kind::Upload
        }
        ("apps", Some("uploads"), None) if *method == Method::POST => Kind::Upload,
        ("apps", Some("uploads"), Some(_)) if *method == Method::PATCH => Kind::Upload,
        ("devices", Some(_), Some("shell" | "install")) if *method == Method::POST => Kind::Command,
        ("devices", Some(_), Some("adb" | "stream")) if *method == Method::GET => Kind::Tunnel,
        _ => Kind::Plain,
    };
    Route {
        target: target(first, second),
        path: join(path, &came),
        kind,
    }
}

/// The path without a leading `/api`.
fn unprefixed(path: &str) -> &str {
    match path.strip_prefix("/api") {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// The path without a leading `/api` and without a trailing slash.
fn bare(path: &str) -> &str {
    let path = unprefixed(path);
    match path.strip_suffix('/') {
        Some("") | None => path,
        Some(rest) => rest,
    }
}

/// The request's target anew, only where its path changed.
fn join(path: &str, came: &PathAndQuery) -> PathAndQuery {
    if path.len() == came.path().len() {
        return came.clone();
    }
    let whole: Cow<'_, str> = match came.query() {
        Some(query) => format!("{path}?{query}").into(),
        None => path.into(),
    };
    // A part of a valid path is one too.
    PathAndQuery::try_from(whole.as_ref()).unwrap_or_else(|_| came.clone())
}

/// Whether a server behind us might read the path as another one than we did.
fn has_dots(path: &str) -> bool {
    path.split('/').any(|segment| {
        matches!(segment.len(), 1..=6)
            && matches!(
                segment.to_ascii_lowercase().replace("%2e", ".").as_str(),
                "." | ".."
            )
    })
}

fn target(first: &str, second: Option<&str>) -> Target {
    match (first, second) {
        ("admin", Some("payments" | "ledger")) => return Target::Service(Service::Billing),
        ("metrics", Some(_)) => return Target::Nowhere,
        _ => {}
    }
    let service = match first {
        "health" | "metrics" | "gateway" | "circuit-breaker" | "openapi.json" | "docs"
        | ".well-known" => {
            return Target::Local;
        }
        "auth" | "users" | "roles" | "permissions" | "menu-permissions" | "quotas" | "api-keys"
        | "audit-logs" => Service::Users,
        "devices" | "snapshots" | "templates" | "lifecycle" | "ports" | "nodes" => Service::Devices,
        "apps" => Service::Apps,
        "plans" | "orders" | "payments" | "billing" | "balance" | "transactions" | "usage"
        | "metering" | "invoices" | "coupons" | "stats" | "reports" | "webhooks" => {
            Service::Billing
        }
        "notifications" | "notification-templates" | "socket.io" | "ws" => Service::Notifications,
        "media" => Service::Media,
        _ => return Target::Nowhere,
    };
    Target::Service(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(uri: &str) -> (Target, String) {
        let route = route(&Method::GET, &uri.parse().unwrap());
        (route.target, route.path.to_string())
    }

    fn to(service: Service, path: &str) -> (Target, String) {
        (Target::Service(service), path.to_owned())
    }

    #[test]
    fn the_prefix_and_the_last_slash_do_not_count_and_the_query_stays() {
        assert_eq!(way("/api/devices"), to(Service::Devices, "/devices"));
        assert_eq!(way("/devices/"), to(Service::Devices, "/devices"));
        assert_eq!(
            way("/api/devices/?a=/api/&b=%2F"),
            to(Service::Devices, "/devices?a=/api/&b=%2F")
        );
        assert_eq!(
            way("http://other/api/orders/7"),
            to(Service::Billing, "/orders/7")
        );
        assert_eq!(
            way("/api/admin/ledger/x"),
            to(Service::Billing, "/admin/ledger/x")
        );
        assert_eq!(way("/api"), (Target::Nowhere, "/".to_owned()));
    }

    #[test]
    fn what_is_not_for_the_outside_is_nowhere() {
        for uri in [
            "/internal/x",
            "/api/internal",
            "/api/api/devices",
            "/admin",
            "/admin/users",
            "/metrics/x",
            "/apiary",
            "//devices",
            "/api//internal",
            "/devices/../internal/x",
            "/devices/%2E%2e/metrics",
            "/devices/.%2e",
            "/devices//x",
            "/socket.io/../internal/x?EIO=4",
            "//ws?EIO=4",
            "/Devices",
            "/%64evices",
            "/",
            "/?EIO=3",
        ] {
            assert_eq!(way(uri).0, Target::Nowhere, "{uri}");
        }
    }

    #[test]
    fn a_socket_io_path_is_left_as_it_came() {
        for (uri, path) in [
            (
                "/socket.io/?EIO=4&transport=polling",
                "/socket.io/?EIO=4&transport=polling",
            ),
            ("/api/socket.io/?EIO=4&sid=a", "/socket.io/?EIO=4&sid=a"),
            ("/ws/?EIO=4", "/ws/?EIO=4"),
            ("/?EIO=4", "/?EIO=4"),
            ("/api/?EIO=4", "/?EIO=4"),
            ("/api?EIO=4", "/?EIO=4"),
        ] {
            assert_eq!(way(uri), to(Service::Notifications, path));
            let kind = route(&Method::GET, &uri.parse().unwrap()).kind;
            assert!(matches!(kind, Kind::Engine(_)), "{uri}");
        }
        assert_eq!(
            way("/ws/notifications"),
            to(Service::Notifications, "/ws/notifications")
        );
    }

    #[test]
    fn uploads_commands_and_tunnels_are_known_by_method_and_path() {
        let kind = |method: &Method, uri: &str| route(method, &uri.parse().unwrap()).kind;
        assert_eq!(kind(&Method::POST, "/api/apps/upload"), Kind::Upload);
        assert_eq!(
            kind(&Method::PUT, "/media/uploads/input/u/t/a.png"),
            Kind::Upload
        );
        assert_eq!(kind(&Method::GET, "/apps/upload"), Kind::Plain);
        assert_eq!(kind(&Method::POST, "/api/devices/7/shell"), Kind::Command);
        assert_eq!(kind(&Method::POST, "/devices/7/install"), Kind::Command);
        assert_eq!(kind(&Method::GET, "/api/devices/7/adb/"), Kind::Tunnel);
        assert_eq!(
            kind(&Method::GET, "/devices/7/stream?ticket=a"),
            Kind::Tunnel
        );
        assert_eq!(kind(&Method::GET, "/devices/7/adb/info"), Kind::Plain);
        assert_eq!(kind(&Method::POST, "/devices/shell"), Kind::Plain);
        assert_eq!(kind(&Method::POST, "/apps/uploads"), Kind::Upload);
        assert_eq!(kind(&Method::PATCH, "/api/apps/uploads/7"), Kind::Upload);
        assert_eq!(kind(&Method::GET, "/apps/uploads/7"), Kind::Plain);
        assert_eq!(kind(&Method::PATCH, "/apps/7"), Kind::Plain);
    }

    #[test]
    fn any_target_that_goes_to_a_service_is_a_plain_path_there() {
        const WORDS: [&str; 32] = [
            "/",
            "/api",
            "/devices",
            "/socket.io",
            "/ws",
            "/internal",
            "/metrics",
            "/x",
            "/..",
            "/.",
            "/%2e",
            "%2E",
            ".",
            "//",
            "?",
            "EIO=4",
            "&",
            "EIO=3",
            "/media/uploads",
            "/admin",
            "/payments",
            "/apps",
            "/upload",
            "http://a",
            "*",
            "/webhooks",
            "/users",
            "%2f",
            "\\",
            "a",
            "#",
            "/health",
        ];
        bolero::check!()
            .with_iterations(5_000)
            .with_max_len(12)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(uri) = text.parse::<Uri>() else { return };
                let found = route(&Method::POST, &uri);

                if found.target == Target::Nowhere {
                    return;
                }
                let (path, again) = (found.path.path(), found.path.as_str().parse::<Uri>());
                assert_eq!(again.unwrap().path_and_query(), Some(&found.path), "{text}");
                assert_eq!(found.path.query(), uri.query(), "{text}");
                assert!(path.starts_with('/'), "{text}");
                let segments: Vec<String> = path
                    .split('/')
                    .map(|one| one.to_ascii_lowercase().replace("%2e", "."))
                    .collect();
                assert!(!path.contains("//"), "{text}");
                assert!(
                    !segments.iter().any(|one| one == "." || one == ".."),
                    "{text}"
                );
                assert!(
                    !path.starts_with("/metrics/") && !path.starts_with("/internal"),
                    "{text}"
                );
                // A one-time address is a secret, however the path was spelled on its way here.
                if let Some(ticket) = path.strip_prefix("/media/uploads/") {
                    let told = platform::http::loggable(uri.path());
                    assert!(
                        uri.path().ends_with(ticket) || uri.path().ends_with('/'),
                        "{text}"
                    );
                    assert!(told.ends_with("/media/uploads/"), "{text}");
                }
            });
    }
}
