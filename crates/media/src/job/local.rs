//! Steps that are made here.

use std::sync::Arc;
use std::sync::atomic::{AtomicI16, Ordering};

use bytes::Bytes;
use platform::objects::ObjectError;
use platform::problem::causes;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::remote::is_url;
use super::worker::result_folder;
use super::{Fault, Work};
use crate::Media;
use crate::stitch::{self, StitchParams};
use crate::task::TaskType;
use crate::upload::MAX_SIZE;

/// Makes a step and stores it; the keys of the objects.
pub async fn make(state: &Media, work: &Work, percent: &AtomicI16) -> Result<Vec<String>, Fault> {
    let closed = |_| Fault::passing("INTERNAL", "no core could be had");
    let core = state.cores.clone().acquire_owned().await.map_err(closed)?;
    // Closures share the permit: one that runs on after its worker is gone still counts.
    let core = Arc::new(core);
    let (file, extension) = match work.kind {
        TaskType::ImageStitch => make_stitch(state, work, &core, percent).await?,
        kind => {
            let message = format!("{} is not made here", kind.name());
            return Err(Fault::lasting("INVALID", message));
        }
    };
    let key = format!("{}/0.{extension}", result_folder(work));
    let put = state.objects.put(&key, file).await;
    put.map_err(|error| Fault::passing("STORAGE_DOWN", causes(&error)))?;
    Ok(vec![key])
}

async fn make_stitch(
    state: &Media,
    work: &Work,
    core: &Arc<OwnedSemaphorePermit>,
    percent: &AtomicI16,
) -> Result<(Bytes, &'static str), Fault> {
    let params: StitchParams = params(work)?;
    let params = params.for_pictures(work.inputs.len());
    let inputs = &work.inputs[..work.inputs.len().min(params.cells())];
    let mut cells = Vec::with_capacity(inputs.len());
    for (index, key) in inputs.iter().enumerate() {
        let file = read(state, key, index, MAX_SIZE as u64).await?;
        let (side, background) = (params.cell, params.background);
        let cell = blocking(core, move || stitch::cell(&file, side, background)).await?;
        let invalid = |error| Fault::lasting("INPUT_INVALID", format!("input {index} {error}"));
        cells.push(cell.map_err(invalid)?);
        let done = (index + 1) * 90 / inputs.len();
        percent.store(i16::try_from(done).unwrap_or_default(), Ordering::Relaxed);
    }
    let extension = params.format.extension();
    let file = blocking(core, move || stitch::compose(&params, &cells)).await?;
    let file = file.map_err(|error| {
        Fault::lasting(
            "INTERNAL",
            format!("the stitch could not be encoded: {error}"),
        )
    })?;
    Ok((file.into(), extension))
}

/// How a step is made.
pub fn params<T: DeserializeOwned>(work: &Work) -> Result<T, Fault> {
    let unread = |error| Fault::lasting("INVALID", format!("its params cannot be read: {error}"));
    serde_json::from_value(work.params.clone()).map_err(unread)
}

/// Reads an input, an object or a file behind a URL.
pub async fn read(state: &Media, input: &str, index: usize, most: u64) -> Result<Bytes, Fault> {
    if is_url(input) {
        return state.fetch.read(input, most).await;
    }
    let refused = |error: ObjectError| match error.is_absent() {
        true => Fault::lasting("INPUT_MISSING", format!("input {index} is no longer there")),
        false => Fault::passing("STORAGE_DOWN", causes(&error)),
    };
    let object = state.objects.read(input, None).await.map_err(refused)?;
    if object.meta.size > most {
        let message = format!("input {index} is larger than {} MiB", most >> 20);
        return Err(Fault::lasting("INPUT_INVALID", message));
    }
    let bytes = object.bytes().await;
    bytes.map_err(|error| Fault::passing("STORAGE_DOWN", error.to_string()))
}

/// Runs what keeps a core busy beside the tasks of the runtime.
pub async fn blocking<T: Send + 'static>(
    core: &Arc<OwnedSemaphorePermit>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let core = core.clone();
    let done = spawn_blocking(move || {
        let made = work();
        drop(core);
        made
    });
    done.await
        .map_err(|_| Fault::passing("INTERNAL", "the work broke off"))
}
