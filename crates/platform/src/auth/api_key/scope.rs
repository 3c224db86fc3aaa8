//! What an API key may be used for: scopes such as `devices:read`, and which one each route wants.

use std::collections::BTreeSet;
use std::fmt;

use http::Method;
use serde::{Deserialize, Serialize};

/// What a key may do, or what a role permits, as `devices:read`, `devices:*`, `*:read` or `*`. One that names nothing grants nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(pub Vec<String>);

/// What a route wants of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This scope.
    Scope(Scope),
    /// Somebody who is signed in: no key will do.
    SignIn,
}

/// One scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    resource: &'static str,
    action: &'static str,
}

/// What a key may do on the routes below a path.
#[derive(Clone, Copy, Debug)]
enum Grant {
    /// Read and write, each by its scope.
    All(&'static str),
    /// Read alone.
    Read(&'static str),
    /// Nothing.
    Nothing,
}

/// The resources of all routes; of two that fit, the longer path holds. What stands nowhere here is not for keys.
const GRANTS: &[(&str, Grant)] = &[
    // Who a user is, and how one signs in, is changed by nobody but who is signed in.
    ("/api-keys", Grant::Nothing),
    ("/auth", Grant::Nothing),
    ("/auth/me", Grant::Read("users")),
    ("/users", Grant::Read("users")),
    ("/roles", Grant::Nothing),
    ("/permissions", Grant::Nothing),
    ("/menu-permissions", Grant::Nothing),
    ("/audit-logs", Grant::Read("audit")),
    ("/devices", Grant::All("devices")),
    ("/ports", Grant::All("devices")),
    ("/nodes", Grant::All("nodes")),
    ("/snapshots", Grant::All("devices")),
    ("/templates", Grant::All("devices")),
    ("/devices/lifecycle", Grant::All("lifecycle")),
    ("/lifecycle", Grant::All("lifecycle")),
    ("/quotas", Grant::All("quotas")),
    ("/apps", Grant::All("apps")),
    ("/media", Grant::All("media")),
    ("/orders", Grant::All("orders")),
    ("/billing/orders", Grant::All("orders")),
    ("/payments", Grant::All("payments")),
    ("/admin/payments", Grant::Read("payments")),
    ("/balance", Grant::All("balance")),
    ("/transactions", Grant::All("balance")),
    ("/usage", Grant::All("usage")),
    ("/billing/usage", Grant::All("usage")),
    ("/billing/admin/usage", Grant::All("usage")),
    ("/billing/exports", Grant::Read("exports")),
    ("/coupons", Grant::All("coupons")),
    ("/invoices", Grant::All("invoices")),
    ("/metering", Grant::All("usage")),
    ("/plans", Grant::All("plans")),
    ("/billing/plans", Grant::All("plans")),
    ("/stats", Grant::Read("stats")),
    ("/reports", Grant::Read("stats")),
    ("/admin/ledger", Grant::All("ledger")),
    ("/notifications", Grant::All("notifications")),
    ("/notification-templates", Grant::All("notifications")),
    // Where one is called, and what signs the calls, is changed by nobody but who is signed in.
    ("/notifications/webhook", Grant::Read("notifications")),
    // A stream lives on for hours by the session that opened it.
    ("/notifications/stream", Grant::Nothing),
    ("/gateway", Grant::All("gateway")),
    ("/circuit-breaker", Grant::All("gateway")),
];

/// What is done in person: giving money back, and saying of an order that it was paid.
const IN_PERSON: &[(&str, &str)] = &[
    ("/payments/", "/refund"),
    ("/orders/", "/refund"),
    ("/orders/", "/confirm"),
    ("/billing/orders/", "/refund"),
    ("/billing/orders/", "/confirm"),
];

impl Scopes {
    /// Whether one of them is, or covers, this one.
    pub fn permit(&self, wanted: Scope) -> bool {
        self.0.iter().any(|granted| {
            let (resource, action) = match granted.as_str() {
                "*" => ("*", "*"),
                granted => granted.split_once(':').unwrap_or_default(),
            };
            covers(resource, wanted.resource) && covers(action, wanted.action)
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.resource, self.action)
    }
}

/// Whether a text is a scope that some route wants, or covers one: `resource:action`, with `*` for all of either or both, or
/// `*` alone. One that opens nothing is none, so that a slip of the pen is not found out by a key that is refused.
pub fn is_scope(text: &str) -> bool {
    let Some((resource, action)) = text.split_once(':') else {
        return text == "*";
    };
    let mut grants = GRANTS.iter().map(|(_, grant)| grant);
    grants.any(|grant| match grant {
        Grant::All(name) => covers(resource, name) && ["*", "read", "write"].contains(&action),
        Grant::Read(name) => covers(resource, name) && ["*", "read"].contains(&action),
        Grant::Nothing => false,
    })
}

/// All scopes that routes want, in order and for people: `devices:read`.
pub fn known() -> BTreeSet<String> {
    let of = |resource, actions: &'static [&'static str]| {
        let scope = move |action| Scope { resource, action }.to_string();
        actions.iter().copied().map(scope)
    };
    let grants = GRANTS.iter().flat_map(|(_, grant)| match grant {
        Grant::All(resource) => of(resource, &["read", "write"]),
        Grant::Read(resource) => of(resource, &["read"]),
        Grant::Nothing => of("", &[]),
    });
    grants.collect()
}

fn covers(granted: &str, wanted: &str) -> bool {
    granted == "*" || granted == wanted
}

/// What a route wants, by its method and its path as the service has it; the names of parameters do not matter.
pub fn wanted(method: &Method, path: &str) -> Wanted {
    let action = match method.is_safe() {
        true => "read",
        false => "write",
    };
    let in_person = |(start, end): &(&str, &str)| path.starts_with(start) && path.ends_with(end);
    if IN_PERSON.iter().any(in_person) {
        return Wanted::SignIn;
    }
    match grant(path) {
        Some(Grant::All(resource)) => Wanted::Scope(Scope { resource, action }),
        Some(Grant::Read(resource)) if action == "read" => {
            Wanted::Scope(Scope { resource, action })
        }
        Some(Grant::Read(_) | Grant::Nothing) | None => Wanted::SignIn,
    }
}

/// What a route wants of a key besides that, where it gives away what belongs to another resource.
pub fn besides(method: &Method, path: &str) -> Option<Scope> {
    let (resource, action) = match (method, path) {
        (&Method::POST, "/devices/{id}/install" | "/devices/batch/install") => ("apps", "read"),
        // The service of devices is asked for the caller.
        (&Method::POST, "/apps/install" | "/apps/uninstall") => ("devices", "write"),
        (_, "/apps/devices/{device_id}/apps" | "/apps/{app_id}/devices") => ("devices", "read"),
        _ => return None,
    };
    Some(Scope { resource, action })
}

/// Whether it was decided what keys may do on a route.
pub fn is_decided(path: &str) -> bool {
    grant(path).is_some()
}

fn grant(path: &str) -> Option<Grant> {
    let is_below = |start: &str| {
        let rest = path.strip_prefix(start);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let fitting = GRANTS.iter().filter(|(start, _)| is_below(start));
    let closest = fitting.max_by_key(|(start, _)| start.len());
    closest.map(|(_, grant)| *grant)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(method: Method, path: &str) -> String {
        match wanted(&method, path) {
            Wanted::Scope(scope) => scope.to_string(),
            Wanted::SignIn => "sign in".to_owned(),
        }
    }

    #[test]
    fn a_route_wants_the_scope_of_its_resource_and_what_it_does() {
        for (method, path, scope) in [
            (Method::GET, "/devices", "devices:read"),
            (Method::HEAD, "/devices/{id}", "devices:read"),
            (Method::POST, "/devices/{id}/start", "devices:write"),
            (
                Method::PUT,
                "/devices/lifecycle/rules/{id}",
                "lifecycle:write",
            ),
            (Method::POST, "/lifecycle/cleanup", "lifecycle:write"),
            (Method::DELETE, "/apps/{app_id}", "apps:write"),
            (Method::POST, "/billing/orders", "orders:write"),
            (Method::POST, "/orders/{id}/cancel", "orders:write"),
            (Method::POST, "/orders/{id}/refund", "sign in"),
            (Method::POST, "/orders/{id}/confirm", "sign in"),
            (Method::POST, "/billing/orders/{id}/refund", "sign in"),
            (Method::POST, "/billing/orders/{id}/confirm", "sign in"),
            (Method::POST, "/payments/{id}/refund", "sign in"),
            (Method::POST, "/admin/payments/{id}/refund", "sign in"),
            (Method::POST, "/payments", "payments:write"),
            (Method::GET, "/auth/me", "users:read"),
            (Method::GET, "/users/{id}", "users:read"),
            (Method::PATCH, "/users/profile", "sign in"),
            (Method::GET, "/auth/sessions", "sign in"),
            (Method::POST, "/auth/change-password", "sign in"),
            (Method::GET, "/api-keys", "sign in"),
            (Method::GET, "/notifications/stream", "sign in"),
            (Method::GET, "/devicesandmore", "sign in"),
            (Method::GET, "/unheard-of", "sign in"),
        ] {
            assert_eq!(told(method.clone(), path), scope, "{method} {path}");
        }
    }

    #[test]
    fn to_install_an_app_wants_to_see_it_and_nothing_else_does() {
        for (method, path, scope) in [
            (Method::POST, "/devices/{id}/install", Some("apps:read")),
            (Method::POST, "/devices/batch/install", Some("apps:read")),
            (Method::GET, "/devices/batch/installs/{batch_id}", None),
            (Method::POST, "/devices/{id}/uninstall", None),
            (Method::POST, "/apps/install", Some("devices:write")),
            (
                Method::GET,
                "/apps/devices/{device_id}/apps",
                Some("devices:read"),
            ),
            (Method::GET, "/apps/{app_id}/devices", Some("devices:read")),
            (Method::POST, "/apps/uninstall", Some("devices:write")),
            (Method::POST, "/apps/upload", None),
        ] {
            let besides = besides(&method, path).map(|scope| scope.to_string());
            assert_eq!(besides.as_deref(), scope, "{method} {path}");
        }
    }

    #[test]
    fn a_scope_covers_what_it_names_and_a_star_everything_in_its_place() {
        let wanted = Scope {
            resource: "devices",
            action: "read",
        };
        for (granted, permits) in [
            ("devices:read", true),
            ("devices:*", true),
            ("*:read", true),
            ("*:*", true),
            ("*", true),
            ("devices:write", false),
            ("*:write", false),
            ("device:read", false),
            ("devices", false),
            ("", false),
        ] {
            let scopes = Scopes(vec!["apps:*".to_owned(), granted.to_owned()]);
            assert_eq!(scopes.permit(wanted), permits, "{granted}");
        }
        assert!(!Scopes(Vec::new()).permit(wanted));
    }

    #[test]
    fn a_scope_that_opens_nothing_is_none() {
        for (text, fits) in [
            ("devices:read", true),
            ("*", true),
            ("*:*", true),
            ("*:read", true),
            ("*:write", true),
            ("devices:*", true),
            ("users:read", true),
            ("users:*", true),
            ("users:write", false),
            ("device:reed", false),
            ("device:read", false),
            ("devices:reed", false),
            ("*:reed", false),
            ("media-tasks:*", false),
            ("", false),
            ("devices", false),
            ("devices:", false),
            (":read", false),
            (":", false),
            ("devices:read:write", false),
            ("dev*:read", false),
            ("Devices:read", false),
            ("devices: read", false),
        ] {
            assert_eq!(is_scope(text), fits, "{text}");
        }
    }

    #[test]
    fn every_known_scope_is_one_and_is_wanted_somewhere() {
        let known = known();

        assert!(known.iter().all(|scope| is_scope(scope)), "{known:?}");
        let some = ["devices:write", "users:read", "ledger:read"];
        assert!(some.iter().all(|scope| known.contains(*scope)), "{known:?}");
        assert!(!known.contains("users:write") && !known.contains(":read"));
    }
}
