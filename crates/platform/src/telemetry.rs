//! Logs and metrics.

use std::io::IsTerminal;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Whether the lines of the log are JSON.
static JSON: OnceLock<bool> = OnceLock::new();
static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Upper bounds of the duration buckets, in seconds.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Starts logging to standard error: text for a terminal, JSON elsewhere. `RUST_LOG` or `LOG_LEVEL` chooses what.
pub fn start_logging(format: LogFormat) {
    let directives = std::env::var("RUST_LOG")
        .or_else(|_| std::env::var("LOG_LEVEL"))
        .unwrap_or_default();
    let directives = if directives.is_empty() {
        "info,sqlx=warn,fred=error".to_owned()
    } else {
        directives
    };
    let mut filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    if filter
        .max_level_hint()
        .is_none_or(|level| level > LevelFilter::INFO)
    {
        // What clients say stands in what these tell below that, tokens among it.
        for quiet in ["socketioxide=info", "engineioxide=info"] {
            filter = filter.add_directive(quiet.parse().expect("a target and a level"));
        }
    }
    let registry = tracing_subscriber::registry().with(filter);
    // A second start, in a test, keeps the first one's output.
    let json = *JSON.get_or_init(|| is_json(format));
    let _ = if json {
        registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    // The list of spans holds the current one as well.
                    .with_current_span(false)
                    .with_writer(std::io::stderr),
            )
            .try_init()
    } else {
        registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_target(false)
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_writer(std::io::stderr),
            )
            .try_init()
    };
}

/// Whether errors are logged, and as lines of JSON.
pub fn is_json_logged() -> bool {
    JSON.get() == Some(&true) && tracing::enabled!(tracing::Level::ERROR)
}

fn is_json(format: LogFormat) -> bool {
    match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

/// Starts counting. The recorder wants [`upkeep`] every few seconds.
///
/// # Errors
/// Where another recorder is installed.
pub fn start_metrics() -> anyhow::Result<()> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    let _ = METRICS.set(handle);
    Ok(())
}

/// Folds what was counted since the last time.
pub fn upkeep() {
    if let Some(handle) = METRICS.get() {
        handle.run_upkeep();
    }
}

/// The figures in the text format of Prometheus 0.0.4.
pub fn render_metrics() -> String {
    METRICS
        .get()
        .map(PrometheusHandle::render)
        .unwrap_or_default()
}
