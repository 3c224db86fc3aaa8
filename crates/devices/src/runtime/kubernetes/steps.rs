//! What is done with the objects of a device. Each step may be repeated, by this worker or another one, and a worker that
//! comes late is refused: the claim, which is there for as long as the device, bears the highest fencing token that was seen.
//! What one makes that was overtaken on its way it takes back, and what it makes after the claim is gone goes the same way,
//! for the claim owns it.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use contracts::DeviceId;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::sleep;

use super::objects::{self, node_ports, outside, service_ports};
use super::seen::is_running;
use super::{BOOT, Kubernetes, SLOW, STOP_GRACE_SECONDS, refused};
use crate::runtime::docker::name;
use crate::runtime::recipe::{CLUSTER_LABEL, DEVICE_LABEL, FENCE_LABEL};
use crate::runtime::{RuntimeError, Spec};

/// How often a step begins anew where others changed what it had read.
const ATTEMPTS: u32 = 8;
/// How long it is waited between two looks, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Kubernetes {
    /// Makes the claim of a device. Its service and its pod come when it starts.
    pub(super) async fn make(&self, spec: &Spec) -> Result<(), RuntimeError> {
        if spec.made_of.is_some() {
            return Err(RuntimeError::Unsupported {
                runtime: crate::device::RuntimeKind::Kubernetes,
                tried: "make a device of a snapshot",
            });
        }
        let tried = "claim the storage of a device";
        let cluster = self.cluster().await?;
        let class = self.place.storage_class.as_deref();
        let claim = objects::claim(spec, &self.recipe, class);
        for _ in 0..ATTEMPTS {
            if self.hold(spec).await?.is_some() {
                return Ok(());
            }
            let params = PostParams::default();
            match self
                .call(tried, cluster.claims.create(&params, &claim))
                .await?
            {
                Ok(_) => return Ok(()),
                Err(status) if exists(&status) => {}
                Err(status) => return Err(refused(tried, &status)),
            }
        }
        Err(contended(tried))
    }

    /// Makes sure that no later worker was here, and that none who came earlier goes on; the claim, where the device has
    /// one.
    async fn hold(&self, spec: &Spec) -> Result<Option<ObjectMeta>, RuntimeError> {
        let tried = "take the claim of a device";
        let claims = self.cluster().await?.claims;
        for _ in 0..ATTEMPTS {
            let Some(claim) = self.find(tried, &claims, &name(&spec.id)).await? else {
                return Ok(None);
            };
            let meta = claim.metadata;
            self.must_be_ours(tried, &meta, &spec.id)?;
            if meta.deletion_timestamp.is_some() {
                let source = "the claim of an earlier one is still being removed".into();
                return Err(RuntimeError::Engine { tried, source });
            }
            not_later(&meta, spec)?;
            if fence(&meta) == Some(spec.fence) {
                return Ok(Some(meta));
            }
            // Only as it was read: whoever changed it since may be later than this worker.
            let patch = json!({ "metadata": {
                "resourceVersion": meta.resource_version,
                "labels": { FENCE_LABEL: spec.fence.to_string() },
            }});
            let (name, params) = (name(&spec.id), PatchParams::default());
            let patch = Patch::Merge(&patch);
            match self
                .call(tried, claims.patch(&name, &params, &patch))
                .await?
            {
                Ok(claim) => return Ok(Some(claim.metadata)),
                Err(status) if matches!(status.code, 404 | 409) => {}
                Err(status) => return Err(refused(tried, &status)),
            }
        }
        Err(contended(tried))
    }

    /// The claim of a device that is to run.
    async fn must_hold(&self, spec: &Spec) -> Result<ObjectMeta, RuntimeError> {
        let (tried, source) = ("start a pod", "the device has no claim".into());
        let claim = self.hold(spec).await?;
        claim.ok_or(RuntimeError::Engine { tried, source })
    }

    /// Makes a device run: its service with the leased ports, then its pod; waits until that runs.
    pub(super) async fn run(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let claim = self.must_hold(spec).await?;
        self.serve(spec, &claim).await?;
        self.boot(spec).await
    }

    async fn serve(&self, spec: &Spec, claim: &ObjectMeta) -> Result<(), RuntimeError> {
        let tried = "give a device its ports";
        let services = self.cluster().await?.services;
        let (name, params) = (name(&spec.id), PostParams::default());
        for _ in 0..ATTEMPTS {
            let answer = match self.find(tried, &services, &name).await? {
                None => {
                    let mut service = objects::service(spec, &self.recipe);
                    objects::own(&mut service.metadata, claim);
                    self.call(tried, services.create(&params, &service)).await?
                }
                Some(mut service) => {
                    self.must_be_ours(tried, &service.metadata, &spec.id)?;
                    not_later(&service.metadata, spec)?;
                    if node_ports(&service) == Some(spec.ports) {
                        return Ok(());
                    }
                    let ports = service_ports(spec.ports);
                    service.spec.get_or_insert_default().ports = Some(ports);
                    let labels = service.metadata.labels.get_or_insert_default();
                    labels.insert(FENCE_LABEL.to_owned(), spec.fence.to_string());
                    let replace = services.replace(&name, &params, &service);
                    self.call(tried, replace).await?
                }
            };
            match answer {
                Ok(_) => return Ok(()),
                Err(status) if matches!(status.code, 404 | 409) => {}
                Err(status) => return Err(occupied(tried, &status, spec)),
            }
        }
        Err(contended(tried))
    }

    async fn boot(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let tried = "start a pod";
        let pods = self.cluster().await?.pods;
        let (name, until) = (name(&spec.id), Instant::now() + BOOT);
        let (mut pause, mut why) = (PAUSES.0, "it was removed again and again".to_owned());
        while Instant::now() < until {
            match self.find(tried, &pods, &name).await? {
                None => {
                    let mut pod = objects::pod(spec, &self.recipe, self.overcommit);
                    objects::own(&mut pod.metadata, &self.must_hold(spec).await?);
                    let params = PostParams::default();
                    match self.call(tried, pods.create(&params, &pod)).await? {
                        Ok(pod) => {
                            if let Err(overtaken) = self.must_hold(spec).await {
                                self.delete(tried, &pods, &pod.metadata, Some(1)).await?;
                                return Err(overtaken);
                            }
                        }
                        Err(status) if exists(&status) => {}
                        Err(status) => return Err(refused(tried, &status)),
                    }
                }
                Some(pod) => {
                    self.must_be_ours(tried, &pod.metadata, &spec.id)?;
                    not_later(&pod.metadata, spec)?;
                    if is_running(&pod) {
                        return Ok(());
                    }
                    // One that ended does not run again.
                    if matches!(phase(&pod), Some("Failed" | "Succeeded")) {
                        self.delete(tried, &pods, &pod.metadata, None).await?;
                    }
                    why = waits_for(&pod);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        let source = format!("it did not run within {BOOT:?}: {why}").into();
        Err(RuntimeError::Engine { tried, source })
    }

    /// Removes the pod of a device; its claim stays, and so do its ports: no other service gets them meanwhile.
    pub(super) async fn halt(&self, spec: &Spec) -> Result<(), RuntimeError> {
        self.hold(spec).await?;
        let tried = "stop a pod";
        let pods = self.cluster().await?.pods;
        let Some(pod) = self.find(tried, &pods, &name(&spec.id)).await? else {
            return Ok(());
        };
        self.must_be_ours(tried, &pod.metadata, &spec.id)?;
        not_later(&pod.metadata, spec)?;
        let grace = Some(STOP_GRACE_SECONDS);
        self.delete(tried, &pods, &pod.metadata, grace).await?;
        self.gone(tried, &pods, &pod.metadata).await
    }

    /// Removes all of a device, and waits until it is gone.
    pub(super) async fn take_away(&self, id: &DeviceId) -> Result<(), RuntimeError> {
        let tried = "remove a device";
        let (cluster, name) = (self.cluster().await?, name(id));
        let service = self.find(tried, &cluster.services, &name).await?;
        let service = service.map(|service| service.metadata);
        let pod = self.find(tried, &cluster.pods, &name).await?;
        let pod = pod.map(|pod| pod.metadata);
        let claim = self.find(tried, &cluster.claims, &name).await?;
        let claim = claim.map(|claim| claim.metadata);
        let ours = |meta: &ObjectMeta| self.is_ours(meta, id);
        self.remove_parts(
            service.filter(ours).as_ref(),
            pod.filter(ours).as_ref(),
            claim.filter(ours).as_ref(),
        )
        .await
    }

    /// Removes objects by their identities, and waits until they are gone. First the way to the device goes.
    pub(super) async fn remove_parts(
        &self,
        service: Option<&ObjectMeta>,
        pod: Option<&ObjectMeta>,
        claim: Option<&ObjectMeta>,
    ) -> Result<(), RuntimeError> {
        let tried = "remove a device";
        let cluster = self.cluster().await?;
        if let Some(service) = service {
            self.delete(tried, &cluster.services, service, None).await?;
        }
        if let Some(pod) = pod {
            self.delete(tried, &cluster.pods, pod, Some(1)).await?;
        }
        if let Some(claim) = claim {
            self.delete(tried, &cluster.claims, claim, None).await?;
        }
        if let Some(pod) = pod {
            self.gone(tried, &cluster.pods, pod).await?;
        }
        if let Some(claim) = claim {
            // It goes after the pod that uses it.
            self.gone(tried, &cluster.claims, claim).await?;
        }
        Ok(())
    }

    /// An object by its name.
    pub(super) async fn find<K>(
        &self,
        tried: &'static str,
        api: &Api<K>,
        name: &str,
    ) -> Result<Option<K>, RuntimeError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        match self.call(tried, api.get(name)).await? {
            Ok(object) => Ok(Some(object)),
            Err(status) if status.code == 404 => Ok(None),
            Err(status) => Err(refused(tried, &status)),
        }
    }

    /// Deletes an object by its identity: one that is gone is fine, and another that took its name stays.
    async fn delete<K>(
        &self,
        tried: &'static str,
        api: &Api<K>,
        meta: &ObjectMeta,
        grace: Option<u32>,
    ) -> Result<(), RuntimeError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let params = DeleteParams {
            grace_period_seconds: grace,
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let name = meta.name.as_deref().unwrap_or_default();
        match self.call(tried, api.delete(name, &params)).await? {
            Ok(_) => Ok(()),
            Err(status) if matches!(status.code, 404 | 409) => Ok(()),
            Err(status) => Err(refused(tried, &status)),
        }
    }

    /// Waits until a deleted object is gone.
    async fn gone<K>(
        &self,
        tried: &'static str,
        api: &Api<K>,
        meta: &ObjectMeta,
    ) -> Result<(), RuntimeError>
    where
        K: Clone + DeserializeOwned + Debug + Resource,
    {
        let (until, mut pause) = (Instant::now() + SLOW, PAUSES.0);
        let name = meta.name.as_deref().unwrap_or_default();
        while let Some(object) = self.find(tried, api, name).await?
            && object.meta().uid == meta.uid
        {
            if Instant::now() >= until {
                let within = SLOW;
                return Err(RuntimeError::Silent { tried, within });
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        Ok(())
    }

    /// What all objects of this cluster bear.
    pub(super) fn ours(&self) -> String {
        format!("{CLUSTER_LABEL}={}", self.recipe.cluster)
    }

    /// Whether an object is ours, and of this device.
    pub(super) fn is_ours(&self, meta: &ObjectMeta, id: &DeviceId) -> bool {
        label(meta, CLUSTER_LABEL) == Some(&self.recipe.cluster)
            && label(meta, DEVICE_LABEL) == Some(id.as_str())
    }

    fn must_be_ours(
        &self,
        tried: &'static str,
        meta: &ObjectMeta,
        id: &DeviceId,
    ) -> Result<(), RuntimeError> {
        if self.is_ours(meta, id) {
            return Ok(());
        }
        let name = meta.name.as_deref().unwrap_or_default();
        let source = format!("{name} is there and is not ours: remove it, or rename it").into();
        Err(RuntimeError::Engine { tried, source })
    }
}

/// A label of an object.
pub(super) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// The fencing token of the last worker that changed an object.
fn fence(meta: &ObjectMeta) -> Option<i64> {
    label(meta, FENCE_LABEL)?.parse().ok()
}

/// Refuses a worker where a later one was.
fn not_later(meta: &ObjectMeta, spec: &Spec) -> Result<(), RuntimeError> {
    match fence(meta) {
        Some(fence) if fence > spec.fence => Err(RuntimeError::Fenced),
        Some(_) | None => Ok(()),
    }
}

pub(super) fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Why a pod does not run yet, in the words of the cluster.
fn waits_for(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let waiting = containers.into_iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let told = [&waiting.reason, &waiting.message];
        let told: Vec<_> = told.into_iter().flatten().map(String::as_str).collect();
        Some(told.join(": "))
    });
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let unmet = conditions.into_iter().flatten().find_map(|condition| {
        (condition.status == "False")
            .then(|| condition.message.clone())
            .flatten()
    });
    let phase = || phase(pod).unwrap_or("unknown").to_owned();
    waiting.or(unmet).unwrap_or_else(phase)
}

fn exists(status: &Status) -> bool {
    status.code == 409 && status.reason == "AlreadyExists"
}

fn contended(tried: &'static str) -> RuntimeError {
    let source = format!("others changed it {ATTEMPTS} times meanwhile").into();
    RuntimeError::Engine { tried, source }
}

/// What it means that the API server refused a service: another one has a port, or the cluster gives out others.
fn occupied(tried: &'static str, status: &Status, spec: &Spec) -> RuntimeError {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let port = causes
        .filter(|cause| cause.message.contains("already allocated"))
        .find_map(|cause| {
            let number = cause.field.strip_prefix("spec.ports[")?;
            let number: usize = number.split_once(']')?.0.parse().ok()?;
            outside(spec.ports).get(number).copied()
        });
    if let Some(port) = port {
        return RuntimeError::PortOccupied { port };
    }
    if status.message.contains("not in the valid range") {
        let source = format!(
            "{}: set DEVICE_ADB_PORTS, DEVICE_WEBRTC_PORTS and DEVICE_SCRCPY_PORTS to parts of the cluster's range of node ports",
            status.message
        );
        let source = source.into();
        return RuntimeError::Engine { tried, source };
    }
    refused(tried, status)
}
