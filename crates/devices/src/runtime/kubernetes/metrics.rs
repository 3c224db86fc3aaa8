//! What pods use, as the cluster's metrics API (`metrics.k8s.io`) tells it: processor time as a rate over its last window, and
//! memory. It knows nothing of storage and network.

use contracts::DeviceId;
use serde::Deserialize;

use super::{Kubernetes, refused};
use crate::measure::Counted;
use crate::runtime::RuntimeError;
use crate::runtime::docker::name;

#[derive(Debug, Deserialize)]
struct PodMetrics {
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Debug, Deserialize)]
struct ContainerMetrics {
    usage: Usage,
}

#[derive(Debug, Deserialize)]
struct Usage {
    cpu: String,
    memory: String,
}

impl Kubernetes {
    /// What a device uses; `None` where its pod does not run, was not measured yet, or where the cluster has no metrics API.
    pub(super) async fn count(&self, id: &DeviceId) -> Result<Option<Counted>, RuntimeError> {
        let tried = "measure a device";
        let cluster = self.cluster().await?;
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods/{}",
            cluster.namespace,
            name(id)
        );
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(|error| RuntimeError::Engine {
            tried,
            source: error.into(),
        })?;
        let asked = cluster.client.request::<PodMetrics>(request);
        let metrics = match self.call(tried, asked).await? {
            Ok(metrics) => metrics,
            Err(status) if status.code == 404 => return Ok(None),
            Err(status) => return Err(refused(tried, &status)),
        };
        let sum = |of: fn(&Usage) -> &str| {
            let amounts = metrics.containers.iter();
            let amounts = amounts.map(|container| amount(of(&container.usage)));
            amounts.sum::<Option<f64>>()
        };
        let (Some(cores), Some(memory)) = (sum(|usage| &usage.cpu), sum(|usage| &usage.memory))
        else {
            return Err(RuntimeError::Engine {
                tried,
                source: "its amounts are none".into(),
            });
        };
        Ok((!metrics.containers.is_empty()).then(|| Counted {
            cores: Some(cores),
            memory_mb: memory / 1_048_576.0,
            ..Counted::default()
        }))
    }
}

/// A quantity of Kubernetes, as in `250m`, `12345678n`, `128974848`, `123Mi`.
fn amount(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, factor) = unit.map_or((text, 1.0), |(unit, factor)| {
        (&text[..text.len() - unit.len()], *factor)
    });
    let is_plain = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = number.parse().ok().filter(|_| is_plain)?;
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_all_their_units() {
        for (text, expected) in [
            ("0", Some(0.0)),
            ("2", Some(2.0)),
            ("250m", Some(0.25)),
            ("1500000000n", Some(1.5)),
            ("700u", Some(0.0007)),
            ("128974848", Some(128_974_848.0)),
            ("512Ki", Some(524_288.0)),
            ("1.5Gi", Some(1_610_612_736.0)),
            ("3k", Some(3_000.0)),
            ("", None),
            ("Mi", None),
            ("-1", None),
            ("inf", None),
            ("1x", None),
            ("1mm", None),
        ] {
            let found = amount(text);
            let fits = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() < 1e-9,
                (found, expected) => found == expected,
            };
            assert!(fits, "{text}: {found:?}");
        }
    }
}
