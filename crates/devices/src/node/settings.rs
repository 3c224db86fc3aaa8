//! Nodes in the settings: a list in JSON, or a file with one.

use std::collections::HashSet;

use garde::Validate;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Labels, Tls, is_address, is_endpoint_of};
use crate::Config;
use crate::device::RuntimeKind;

/// A node as operators describe it, in the settings and through the API. What is left out stays as it is, or has no limit.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSettings {
    /// Its name, 1 to 64 characters from A-Z a-z 0-9 _ . : -, for ever.
    #[garde(custom(check_name))]
    pub name: String,
    /// Default docker.
    #[serde(default = "docker")]
    #[garde(skip)]
    pub runtime: RuntimeKind,
    /// The engine: `unix:///path` or `tcp://host:port`; for kubernetes `in-cluster://namespace` or
    /// `kubeconfig:///path?context=name&namespace=name`; none for a simulated node.
    #[garde(custom(check_endpoint(self.runtime)))]
    pub endpoint: Option<String>,
    /// With which files replicas authenticate themselves to an engine at `tcp://`.
    #[garde(skip)]
    pub tls: Option<Tls>,
    /// Where clients reach the ports of its devices: an IP address or a host name.
    #[garde(custom(check_address))]
    pub address: String,
    /// The IP address on the node that these ports are bound to; default `address`, or every one where that is a name. None
    /// for kubernetes.
    #[garde(custom(check_bind(self.runtime)))]
    #[schema(value_type = Option<String>)]
    pub bind: Option<std::net::IpAddr>,
    /// Marks for placement.
    #[garde(custom(check_labels))]
    pub labels: Option<Labels>,
    /// Processor cores there are.
    #[garde(range(min = 0.1, max = 4096.0))]
    pub cpu_cores: Option<f64>,
    /// How many times as many cores are promised to devices; default 1.
    #[garde(range(min = 0.1, max = 100.0))]
    pub cpu_overcommit: Option<f64>,
    /// Memory for devices; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 1, max = 1_073_741_824))]
    pub memory_m_b: Option<i32>,
    /// Disk for snapshots and for what is stored on devices, as far as images are brought from other nodes; `diskMB` on the
    /// wire and in refusals.
    #[garde(range(min = 1, max = 1_073_741_824))]
    pub disk_m_b: Option<i32>,
    /// How many devices it may have.
    #[garde(range(min = 0, max = 100_000))]
    pub devices: Option<i32>,
    /// Whether simulated devices are placed there, too. Default for simulated nodes only.
    #[garde(skip)]
    pub hosts_simulated: Option<bool>,
}

/// What a node in the settings may say; the API ignores what else there is, the settings refuse it.
const KEYS: [&str; 13] = [
    "name",
    "runtime",
    "endpoint",
    "tls",
    "address",
    "bind",
    "labels",
    "cpuCores",
    "cpuOvercommit",
    "memoryMB",
    "diskMB",
    "devices",
    "hostsSimulated",
];

fn docker() -> RuntimeKind {
    RuntimeKind::Docker
}

impl NodeSettings {
    /// The one node of a machine that is told of no others. It has no limits, and takes simulated devices in any case.
    pub fn only(config: &Config, runtime: RuntimeKind) -> Self {
        let endpoint = config.docker_host.replacen("http://", "tcp://", 1);
        Self {
            name: config.node.clone(),
            runtime,
            endpoint: (runtime == RuntimeKind::Docker).then_some(endpoint),
            tls: None,
            address: config.node_address.to_string(),
            bind: Some(config.node_address),
            labels: None,
            cpu_cores: None,
            cpu_overcommit: None,
            memory_m_b: None,
            disk_m_b: None,
            devices: None,
            hosts_simulated: Some(true),
        }
    }
}

fn check_name(name: &str, _: &()) -> garde::Result {
    match contracts::id::is_valid(name) {
        true => Ok(()),
        false => Err(garde::Error::new(
            "must be 1 to 64 characters from A-Z a-z 0-9 _ . : -",
        )),
    }
}

/// Checks where an engine is, and whether there is one where it is needed.
pub fn check_endpoint(runtime: RuntimeKind) -> impl FnOnce(&Option<String>, &()) -> garde::Result {
    move |endpoint, ()| match (runtime, endpoint) {
        (RuntimeKind::Simulated, None) => Ok(()),
        (RuntimeKind::Simulated, Some(_)) => {
            Err(garde::Error::new("must be absent for simulated devices"))
        }
        (RuntimeKind::Docker | RuntimeKind::Kubernetes, None) => Err(garde::Error::new(format!(
            "is needed for {runtime}, which a node has unless its `runtime` says otherwise"
        ))),
        (runtime, Some(endpoint)) if is_endpoint_of(runtime, endpoint) => Ok(()),
        (RuntimeKind::Docker, Some(_)) => {
            Err(garde::Error::new("must be unix:///path or tcp://host:port"))
        }
        (RuntimeKind::Kubernetes, Some(_)) => Err(garde::Error::new(
            "must be in-cluster://namespace or kubeconfig:///path?context=name&namespace=name",
        )),
    }
}

/// Checks where clients are to go.
pub fn check_address(address: &str, _: &()) -> garde::Result {
    match is_address(address) {
        true => Ok(()),
        false => Err(garde::Error::new("must be an IP address or a host name")),
    }
}

/// Refuses what a cluster would not heed: whoever sets it would take ports for closed that are open.
fn check_bind(
    runtime: RuntimeKind,
) -> impl FnOnce(&Option<std::net::IpAddr>, &()) -> garde::Result {
    move |bind, ()| match (runtime, bind) {
        (RuntimeKind::Kubernetes, Some(_)) => Err(garde::Error::new(
            "must be absent for kubernetes, which binds node ports as its --nodeport-addresses say",
        )),
        _ => Ok(()),
    }
}

/// Checks marks: few and short ones.
pub fn check_labels(labels: &Option<Labels>, _: &()) -> garde::Result {
    let fits = |text: &str| (1..=63).contains(&text.chars().count());
    let Some(labels) = labels else {
        return Ok(());
    };
    match labels.len() <= 64
        && labels
            .iter()
            .all(|(key, value)| fits(key) && (value.is_empty() || fits(value)))
    {
        true => Ok(()),
        false => Err(garde::Error::new(
            "must be at most 64 texts of at most 63 characters",
        )),
    }
}

/// Reads a list of nodes: JSON, or the path of a file with it.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(text: &str) -> Result<Vec<NodeSettings>, String> {
    let text = text.trim();
    let given: Vec<Map<String, Value>> = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        let read = std::fs::read_to_string(text);
        let read = read.map_err(|error| format!("cannot read {text}: {error}"))?;
        serde_json::from_str(&read).map_err(|error| format!("{text}: {error}"))?
    };
    if let Some(key) = (given.iter().flat_map(Map::keys)).find(|key| !KEYS.contains(&key.as_str()))
    {
        let known = KEYS.join(", ");
        return Err(format!("`{key}` is nothing that a node has: {known}"));
    }
    let nodes: Vec<NodeSettings> = given
        .into_iter()
        .map(|node| serde_json::from_value(Value::Object(node)).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let mut names = HashSet::new();
    for node in &nodes {
        node.validate()
            .map_err(|report| format!("node {}: {}", node.name, report.to_string().trim()))?;
        if !names.insert(&node.name) {
            return Err(format!("node {} is there twice", node.name));
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_from_the_text_itself_and_from_a_file() {
        let text = r#"[{"name": "a", "endpoint": "unix:///run/a.sock", "address": "10.0.0.5", "cpuCores": 8, "memoryMB": 16000},
            {"name": "b", "runtime": "simulated", "address": "127.0.0.1"}]"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();

        for text in [text, file.path().to_str().unwrap()] {
            let nodes = parse(text).unwrap();
            assert_eq!(nodes.len(), 2);
            assert_eq!(nodes[0].memory_m_b, Some(16_000));
            assert_eq!(nodes[1].runtime, RuntimeKind::Simulated);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("[", "EOF"),
            ("/nowhere/nodes.json", "/nowhere/nodes.json"),
            (r#"[{"name": "a", "address": "h"}]"#, "endpoint"),
            (
                r#"[{"name": "a b", "endpoint": "unix:///s", "address": "h"}]"#,
                "name",
            ),
            (
                r#"[{"name": "a", "endpoint": "ftp://s", "address": "h"}]"#,
                "tcp://host:port",
            ),
            (
                r#"[{"name": "a", "runtime": "kubernetes", "endpoint": "unix:///s", "address": "h"}]"#,
                "in-cluster://namespace",
            ),
            (
                r#"[{"name": "a", "runtime": "kubernetes", "endpoint": "in-cluster://phones", "address": "h", "bind": "127.0.0.1"}]"#,
                "--nodeport-addresses",
            ),
            (
                r#"[{"name": "a", "endpoint": "in-cluster://phones", "address": "h"}]"#,
                "tcp://host:port",
            ),
            (
                r#"[{"name": "a", "endpoint": "unix:///s", "address": "h", "password": "x"}]"#,
                "password",
            ),
            (
                r#"[{"name": "a", "runtime": "simulated", "address": "h"}, {"name": "a", "runtime": "simulated", "address": "h"}]"#,
                "twice",
            ),
        ];
        for (text, part) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{part} is not told in {error}");
        }
    }
}
