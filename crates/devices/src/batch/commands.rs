//! One command, or one app to be removed, on many devices.

use axum::extract::State;
use contracts::{AppId, DeviceId};
use garde::Validate;
use platform::http::Json;
use platform::{CurrentUser, Problem};
use serde::Deserialize;
use tokio::time::Instant;

use super::api::{BatchBody, named};
use super::{Done, Item, MOST, PATIENCE, Report, Said, each};
use crate::access::adb::{Cut, Output, quoted};
use crate::access::remote::{NO_EXIT_CODE, Task, run, text};
use crate::access::words::{self, first_line, is_package_name};
use crate::installation::removal::Removal;
use crate::{Devices, error::Result};

/// How much of each device's output is given: that of 500 devices must fit an answer.
const MOST_OUTPUT: usize = 16 << 10;

/// Which devices, and what their shells are given.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteBody {
    /// What the devices' shells are given, 1 to 1000 characters.
    #[garde(length(chars, min = 1, max = 1000), custom(words::without_nul))]
    pub command: String,
    /// 1 to 500 devices.
    #[garde(length(max = MOST))]
    pub ids: Option<Vec<DeviceId>>,
    /// The same as `ids`.
    #[garde(length(max = MOST))]
    pub device_ids: Option<Vec<DeviceId>>,
    /// The caller's devices in this group, in the place of ids.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// How many at a time, 1 to 50; default 10. A replica does at most half of `DEVICE_COMMANDS`.
    #[garde(range(min = 1, max = 50))]
    pub max_concurrency: Option<usize>,
}

/// Which devices, and which app is removed from them.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UninstallBody {
    /// The Android package.
    #[garde(custom(is_package_name))]
    pub package_name: String,
    /// 1 to 500 devices.
    #[garde(length(max = MOST))]
    pub ids: Option<Vec<DeviceId>>,
    /// The same as `ids`.
    #[garde(length(max = MOST))]
    pub device_ids: Option<Vec<DeviceId>>,
    /// The caller's devices in this group, in the place of ids.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// How many at a time, 1 to 50; default 10. A replica does at most half of `DEVICE_COMMANDS`.
    #[garde(range(min = 1, max = 50))]
    pub max_concurrency: Option<usize>,
}

/// Which devices, and which app they get.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallBody {
    /// An app of the service of apps that the caller may see.
    #[garde(skip)]
    pub app_id: AppId,
    /// 1 to 500 devices.
    #[garde(length(max = MOST))]
    pub ids: Option<Vec<DeviceId>>,
    /// The same as `ids`.
    #[garde(length(max = MOST))]
    pub device_ids: Option<Vec<DeviceId>>,
    /// The caller's devices in this group, in the place of ids.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// Of no effect: a replica installs on as many devices at a time as half of `DEVICE_COMMANDS` says.
    #[garde(range(min = 1, max = 50))]
    pub max_concurrency: Option<usize>,
}

/// Runs a command on devices. A device succeeds where the command ends with 0; what it printed is told in any case. Commands
/// that do not end before the answer is due are cut off.
#[utoipa::path(post, path = "/devices/batch/execute", tag = "batch", request_body = ExecuteBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn execute_on_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<ExecuteBody>,
) -> Result<Json<Report>> {
    let batch = BatchBody {
        ids: body.ids,
        device_ids: body.device_ids,
        group_name: body.group_name,
        max_concurrency: body.max_concurrency,
    };
    let (state, user, command) = (&state, &user, &body.command);
    let until = Instant::now() + PATIENCE;
    let on_one = |id: DeviceId| async move {
        let task = Task {
            name: "execute",
            tried: "run the command",
            line: command,
            most: MOST_OUTPUT,
            within: until.saturating_duration_since(Instant::now()),
        };
        let output = run(state, user, &id, task).await?;
        let fault = match (output.cut, output.exit) {
            (Some(Cut::TooLate), _) => Some("the command took too long and was cut off".to_owned()),
            (Some(Cut::TooLong), _) => {
                Some("the output was longer than 16 KiB; the command was cut off".to_owned())
            }
            (None, Some(0)) => None,
            (None, Some(code)) => Some(format!("the command ended with {code}")),
            (None, None) => Some("the command was ended by a signal".to_owned()),
        };
        Ok(Done {
            said: Some(said(&output)),
            fault,
            ..Done::accepted(id, None)
        })
    };
    commanded(state, user, "execute", batch, on_one).await
}

/// Removes an app from devices. A device that has no such app is as it shall be, so that a repeated request succeeds.
#[utoipa::path(post, path = "/devices/batch/uninstall", tag = "batch", request_body = UninstallBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn uninstall_from_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<UninstallBody>,
) -> Result<Json<Report>> {
    let batch = BatchBody {
        ids: body.ids,
        device_ids: body.device_ids,
        group_name: body.group_name,
        max_concurrency: body.max_concurrency,
    };
    let (state, user, name) = (&state, &user, &body.package_name);
    let word = quoted(name);
    let (remove, look) = (&format!("pm uninstall {word}"), &format!("pm path {word}"));
    let until = Instant::now() + PATIENCE;
    let on_one = |id: DeviceId| async move {
        let task = |line| Task {
            name: "uninstall",
            tried: "remove the app",
            line,
            most: MOST_OUTPUT,
            within: until.saturating_duration_since(Instant::now()),
        };
        let removal = Removal::begin(state, &id, name).await?;
        let output = run(state, user, &id, task(remove)).await?;
        let answer = text(&output);
        if output.exit == Some(0) && answer.contains("Success") {
            removal.end().await?;
            return Ok(Done::accepted(id, None));
        }
        let found = run(state, user, &id, task(look)).await?;
        // It ends with 1 and says nothing of an app that is not there.
        let is_absent = found.cut.is_none() && found.exit == Some(1) && found.all.is_empty();
        if is_absent {
            removal.end().await?;
        }
        let fault = format!("{name} was not removed: {}", first_line(&answer));
        Ok(Done {
            fault: (!is_absent).then_some(fault),
            ..Done::accepted(id, None)
        })
    };
    commanded(state, user, "uninstall", batch, on_one).await
}

/// Does something by ADB with each device that a body names.
async fn commanded<F>(
    state: &Devices,
    user: &CurrentUser,
    operation: &'static str,
    body: BatchBody,
    on_one: impl Fn(DeviceId) -> F,
) -> Result<Json<Report>>
where
    F: Future<Output = Result<Done>>,
{
    let pace = (&state.batch_commands, body.max_concurrency.unwrap_or(10));
    let ids = named(state, user, body).await?;
    let items = ids.into_iter().map(Item::Device).collect();
    let on_one = &on_one;
    let work = |item| async move {
        match item {
            Item::Device(id) => on_one(id).await,
            Item::New(_) => Err(Problem::internal().into()),
        }
    };
    Ok(Json(
        each(state, (&user.id, operation), items, pace, work).await,
    ))
}

fn said(output: &Output) -> Said {
    Said {
        output: text(output),
        exit_code: output.exit.map_or(NO_EXIT_CODE, i32::from),
        truncated: output.cut == Some(Cut::TooLong),
    }
}
