//! `gateway explain`: what became of a request, from the memory of the gateways.

use anyhow::bail;
use contracts::Service;
use coordination::{Keys, Registry};
use gateway::front::record::{End, Record, Try};
use http::Method;
use platform::auth::credential;
use platform::{Clock, Env, db, redis, secrets};

use super::say;
use super::stores::addresses;
use super::table::{line, table};
use crate::explain::{Explanation, Found, Inquiry, gateways};
use crate::serve::Config;

/// Shows every request of an id that a gateway of the cluster remembers.
pub async fn explain(env: Env, request_id: &str, json: bool) -> anyhow::Result<i32> {
    let settings = Config::from_env(env)?.settings;
    let stores = addresses(&settings)?;
    let redis = redis::connect(&stores.redis).await?.pool;
    let snapshot = Registry::new(redis, Keys::new(&settings.key_prefix))
        .read()
        .await?;
    let gateways = gateways(&snapshot);
    if gateways.is_empty() {
        bail!("no gateway is in the registry of the cluster");
    }
    let db = db::connect(&stores.database, (0, 1)).await?;
    let secret = settings.service_secret.clone();
    let secret = secrets::configured_or_made(&db, "SERVICE_SECRET", secret).await;
    db.close().await;
    let (secret, now) = (secret?, Clock::system().now());
    let sign =
        |method: &Method, path: &str| credential(&secret, Service::Gateway, now, method, path);
    let known = Inquiry::new()?.ask(&gateways, request_id, sign).await;
    if known.requests.is_empty() {
        bail!("{}", unknown(request_id, &known, gateways.len()));
    }
    if json {
        say(&serde_json::to_string_pretty(&known)?)?;
    } else {
        say(&shown(&known))?;
    }
    Ok(0)
}

fn unknown(request_id: &str, known: &Explanation, gateways: usize) -> String {
    if known.silent.is_empty() {
        return format!(
            "none of {gateways} gateway(s) remembers a request {request_id}: they keep the latest DECISION_LOG_REQUESTS, \
             for DECISION_LOG_SECONDS at most, and what only a gateway that ended knew is gone"
        );
    }
    let silent = known.silent.join(", ");
    format!(
        "no gateway that answered remembers a request {request_id}; no answer came from {silent}"
    )
}

fn shown(known: &Explanation) -> String {
    let requests = known.requests.iter().map(request);
    let silent = known.silent.iter();
    let silent =
        silent.map(|gateway| format!("no answer came from {gateway}, which may know more"));
    requests.chain(silent).collect::<Vec<_>>().join("\n\n")
}

fn request(found: &Found) -> String {
    let record = &found.record;
    let mut facts = vec![
        vec!["request".to_owned(), record.request_id.to_string()],
        vec!["trace".to_owned(), record.trace_id.to_string()],
        vec![
            "asked".to_owned(),
            format!("{} {} ({})", record.method, record.path, record.protocol),
        ],
        vec![
            "by".to_owned(),
            record
                .client
                .map_or_else(|| "unknown".to_owned(), |client| client.to_string()),
        ],
        vec!["at".to_owned(), record.received_at.to_string()],
        vec!["through".to_owned(), format!("gateway {}", found.gateway)],
        vec!["for".to_owned(), target(record)],
    ];
    if let Some(limit) = &record.limit {
        let said = if limit.allowed { "passed" } else { "refused" };
        facts.push(vec![
            "limit".to_owned(),
            format!(
                "{} {said}, {} of {} left",
                limit.tier, limit.remaining, limit.limit
            ),
        ]);
    }
    if let Some(refused) = &record.refusal {
        facts.push(vec![
            "refused".to_owned(),
            format!("{}: {}", refused.reason, refused.message),
        ]);
    }
    if let Some(problem) = &record.problem {
        let fields = match problem.fields.is_empty() {
            true => String::new(),
            false => format!(" (at fault: {})", problem.fields.join(", ")),
        };
        let (code, message) = (&problem.code, &problem.message);
        facts.push(vec![
            "refused".to_owned(),
            format!("by the service, {code}: {message}{fields}"),
        ]);
    }
    facts.push(vec!["answer".to_owned(), answer(record)]);
    facts.push(vec![
        "bytes".to_owned(),
        format!("{} in, {} out", record.bytes_received, record.bytes_sent),
    ]);
    facts.push(vec![
        "took".to_owned(),
        format!(
            "{} ms; {} ms to the head of the answer, {} ms of them waiting for instances",
            record.total_ms, record.head_ms, record.upstream_ms
        ),
    ]);
    let facts = lines(facts);
    if record.tries.is_empty() {
        return facts;
    }
    let head = ["TRY", "INSTANCE", "ADDRESS", "AFTER", "TOOK", "OUTCOME"];
    let tries = record.tries.iter().enumerate();
    let tries = table(&head, tries.map(|(before, one)| row(before + 1, one)));
    format!("{facts}\n\n{tries}")
}

fn target(record: &Record) -> String {
    let Some(service) = record.service else {
        return "the gateway itself".to_owned();
    };
    let only = if record.sticky {
        ", where only the instance that has the session can answer"
    } else {
        ""
    };
    format!("{service}{only}")
}

fn answer(record: &Record) -> String {
    let end = match record.end {
        End::Whole => "",
        End::BrokeOff => ", which broke off",
        End::ClientLeft => ", but the client left before its end",
    };
    match record.status {
        Some(status) => format!("{status}{end}"),
        None => "none: the client left before".to_owned(),
    }
}

fn row(number: usize, one: &Try) -> Vec<String> {
    let outcome = match (one.status, &one.error) {
        (Some(status), _) => format!("{} {status}", one.outcome.name()),
        (None, Some(error)) => format!("{}: {error}", one.outcome.name()),
        (None, None) => one.outcome.name().to_owned(),
    };
    vec![
        number.to_string(),
        one.instance.to_string(),
        one.address.to_string(),
        format!("{} ms", one.began_ms),
        format!("{} ms", one.took_ms),
        outcome,
    ]
}

/// Lines up two columns.
fn lines(rows: Vec<Vec<String>>) -> String {
    let width = rows.iter().map(|row| row[0].len()).max().unwrap_or(0);
    let lines = rows
        .iter()
        .map(|row| format!("{:<width$}  {}", row[0], line(&row[1])));
    lines.collect::<Vec<_>>().join("\n")
}
