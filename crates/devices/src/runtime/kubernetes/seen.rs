//! What is seen of devices in a cluster.

use std::collections::BTreeMap;
use std::fmt::Debug;

use contracts::DeviceId;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;

use super::objects::node_ports;
use super::steps::{label, phase};
use super::{Kubernetes, refused};
use crate::reconcile::Container;
use crate::runtime::docker::name;
use crate::runtime::recipe::DEVICE_LABEL;
use crate::runtime::{RuntimeError, Seen};

/// How many objects an answer of the API server has at most.
const PAGE: u32 = 500;

/// What there is of one device.
#[derive(Default)]
struct Parts {
    service: Option<Service>,
    pod: Option<Pod>,
    claim: Option<ObjectMeta>,
}

impl Kubernetes {
    /// Looks at a device. It runs where its pod does, and its ports lead there.
    pub(super) async fn look(&self, id: &DeviceId) -> Result<Seen, RuntimeError> {
        let tried = "look at a device";
        let (cluster, name) = (self.cluster().await?, name(id));
        let (pod, service, claim) = futures::try_join!(
            self.find(tried, &cluster.pods, &name),
            self.find(tried, &cluster.services, &name),
            self.find(tried, &cluster.claims, &name),
        )?;
        let pod = pod.filter(|pod| self.is_ours(&pod.metadata, id));
        let service = service.filter(|service| self.is_ours(&service.metadata, id));
        let claim = claim.filter(|claim| self.is_ours(&claim.metadata, id));
        if service.is_some() && pod.as_ref().is_some_and(is_running) {
            return Ok(Seen::Running);
        }
        match (pod, service, claim) {
            (None, None, None) => Ok(Seen::Absent),
            _ => Ok(Seen::Stopped),
        }
    }

    /// Lists what there is of every device of this cluster.
    pub(super) async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let cluster = self.cluster().await?;
        let mut found: BTreeMap<(String, String), Parts> = BTreeMap::new();
        // What is not ours is not touched, whatever the server says.
        let key = |meta: &ObjectMeta| {
            let device = label(meta, DEVICE_LABEL)?.to_owned();
            let is_ours = device.parse().is_ok_and(|id| self.is_ours(meta, &id));
            let name = meta.name.clone()?;
            is_ours.then_some((device, name))
        };
        for pod in self.every(&cluster.pods).await? {
            if let Some(key) = key(&pod.metadata) {
                found.entry(key).or_default().pod = Some(pod);
            }
        }
        for service in self.every(&cluster.services).await? {
            if let Some(key) = key(&service.metadata) {
                found.entry(key).or_default().service = Some(service);
            }
        }
        for claim in self.every(&cluster.claims).await? {
            if let Some(key) = key(&claim.metadata) {
                found.entry(key).or_default().claim = Some(claim.metadata);
            }
        }
        let containers = found.into_iter().map(|((device, name), parts)| {
            let running = parts.service.is_some() && parts.pod.as_ref().is_some_and(is_running);
            let ports = parts.service.as_ref().and_then(node_ports);
            Container {
                id: identity(&name, &parts),
                device,
                running,
                ports: ports.filter(|_| running),
            }
        });
        Ok(containers.collect())
    }

    /// Removes what a list gave this identity to.
    pub(super) async fn remove_identity(&self, id: &str) -> Result<(), RuntimeError> {
        let mut words = id.split(' ');
        let name = words.next().unwrap_or_default();
        let parts: Vec<_> = words.filter_map(|word| word.split_once('=')).collect();
        let part = |kind: &str| {
            let (_, uid) = parts.iter().find(|(of, _)| *of == kind)?;
            Some(ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some((*uid).to_owned()),
                ..ObjectMeta::default()
            })
        };
        let (service, pod, claim) = (part("service"), part("pod"), part("claim"));
        self.remove_parts(service.as_ref(), pod.as_ref(), claim.as_ref())
            .await
    }

    /// Every object of a kind that bears the label of this cluster, page by page.
    async fn every<K>(&self, api: &Api<K>) -> Result<Vec<K>, RuntimeError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let tried = "list the devices of a cluster";
        let mut objects = Vec::new();
        let mut page = ListParams::default().limit(PAGE).labels(&self.ours());
        loop {
            let list = self.call(tried, api.list(&page)).await?;
            let list = list.map_err(|status| refused(tried, &status))?;
            objects.extend(list.items);
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }
}

/// Whether a pod runs, and is to go on running.
pub(super) fn is_running(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && phase(pod) == Some("Running")
}

/// By which exactly these objects are removed, and none that takes their name later.
fn identity(name: &str, parts: &Parts) -> String {
    let pod = parts.pod.as_ref().map(|pod| &pod.metadata);
    let service = parts.service.as_ref().map(|service| &service.metadata);
    let kinds = [
        ("pod", pod),
        ("service", service),
        ("claim", parts.claim.as_ref()),
    ];
    let mut identity = name.to_owned();
    for (kind, meta) in kinds {
        if let Some(uid) = meta.and_then(|meta| meta.uid.as_ref()) {
            identity = format!("{identity} {kind}={uid}");
        }
    }
    identity
}
