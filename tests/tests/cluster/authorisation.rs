//! Who may call what: asked of every route that the OpenAPI document names, so that a new one cannot escape.

use std::collections::BTreeSet;

use cluster_tests::{GATEWAY, call};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::{Cluster, fresh};

/// Routes that are open to everybody. A new one is added here by whoever opens it, or the test fails.
const OPEN: [&str; 21] = [
    "OPTIONS /apps/uploads",
    "GET /.well-known/jwks.json",
    "GET /billing/plans",
    "GET /billing/plans/active",
    "GET /billing/plans/quick-list",
    "GET /billing/plans/{id}",
    "GET /media/uploads/{ticket}",
    "GET /payments/sandbox/{paymentNo}",
    "GET /plans",
    "GET /plans/active",
    "GET /plans/quick-list",
    "GET /plans/{id}",
    "GET /auth/captcha",
    "POST /auth/2fa/verify",
    "POST /auth/forgot-password",
    "POST /auth/login",
    "POST /auth/register",
    "POST /auth/reset-password",
    "POST /auth/verify-reset-token",
    "POST /payments/sandbox/{paymentNo}",
    "PUT /media/uploads/{ticket}",
];

/// Opened by a ticket in the query, which no token replaces.
const TICKETED: [&str; 2] = ["GET /devices/{id}/adb", "GET /devices/{id}/stream"];

/// Takes a refresh token in the place of an access token, and refuses a call without one in the same words.
const RENEWAL: &str = "POST /auth/refresh";

/// Signed by the provider, not by a token of ours.
const SIGNED: [&str; 2] = [
    "POST /media/callbacks/{task_id}/{step_index}",
    "POST /webhooks/payment",
];

/// The same, where no keys of the provider are set: nobody is believed, and each is told so in the provider's words.
const UNSET: [&str; 5] = [
    "POST /payments/notify/alipay",
    "POST /payments/notify/wechat",
    "POST /webhooks/alipay",
    "POST /webhooks/stripe",
    "POST /webhooks/wechatpay",
];

struct Operation {
    method: Method,
    path: String,
    is_open: bool,
}

impl Operation {
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The path with an id that names nothing in the place of each parameter.
    fn url(&self, cluster: &Cluster) -> String {
        let steps = self.path.split('/').map(|step| {
            if step.starts_with('{') {
                "019a0000-0000-7000-8000-000000000000"
            } else {
                step
            }
        });
        let path = steps.collect::<Vec<_>>().join("/");
        cluster.url(GATEWAY, &format!("/api{path}"))
    }

    fn body(&self) -> Option<Value> {
        (self.method != Method::GET && self.method != Method::DELETE).then(|| json!({}))
    }
}

async fn operations(cluster: &Cluster) -> anyhow::Result<Vec<Operation>> {
    let document = call(Method::GET, cluster.url(GATEWAY, "/api/openapi.json"), None)
        .await?
        .expect(200);
    let mut found = Vec::new();
    let paths = document["paths"].as_object().into_iter().flatten();
    for (path, item) in paths {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes())?;
            let is_open = operation["security"] == json!([{}]);
            let path = path.clone();
            found.push(Operation {
                method,
                path,
                is_open,
            });
        }
    }
    Ok(found)
}

#[tokio::test]
async fn every_route_but_the_open_ones_refuses_a_call_without_a_good_token() -> anyhow::Result<()> {
    let cluster = Cluster::builder(1).env("SANDBOX", "false").start().await?;
    let operations = operations(&cluster).await?;
    assert!(operations.len() > 80, "{}", operations.len());

    let open: BTreeSet<String> = operations
        .iter()
        .filter(|operation| operation.is_open)
        .map(Operation::name)
        .collect();
    let expected = OPEN.into_iter().chain(TICKETED).chain(UNSET);
    let expected = expected.chain(SIGNED).chain([RENEWAL]);
    assert_eq!(open, expected.map(str::to_owned).collect());

    // The signature of another key over good claims, the algorithm "none", and no JWT at all.
    let forged = [
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZG1pbiIsInJvbGVzIjpbInN1cGVyX2FkbWluIl0sImV4cCI6NDEwMjQ0NDgwMH0.c2lnbmF0dXJl",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiIsInJvbGVzIjpbInN1cGVyX2FkbWluIl0sImV4cCI6NDEwMjQ0NDgwMH0.",
        "admin",
    ];
    for operation in &operations {
        let name = operation.name();
        let reply = call(
            operation.method.clone(),
            operation.url(&cluster),
            operation.body(),
        )
        .await?;
        if UNSET.contains(&&*name) {
            reply.expect_at(&name, 404);
            continue;
        }
        let wants_proof = SIGNED.contains(&&*name) || name == RENEWAL || TICKETED.contains(&&*name);
        if operation.is_open && !wants_proof {
            let body = reply.body.to_string();
            assert!(!body.contains("UNAUTHENTICATED"), "{name}: {body}");
            continue;
        }
        let problem = reply.expect_at(&name, 401);
        let code = if SIGNED.contains(&&*name) {
            "BAD_SIGNATURE"
        } else {
            "UNAUTHENTICATED"
        };
        assert_eq!(problem["error"], code, "{name}");
        for token in forged {
            let mut request = fresh()
                .request(operation.method.clone(), operation.url(&cluster))
                .bearer_auth(token);
            if let Some(body) = operation.body() {
                request = request.json(&body);
            }
            let status = request.send().await?.status();
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{name} with {token}");
        }
    }
    Ok(())
}
