//! What the service itself does on a device, by ADB and in the device's own shell: no shell of our host ever sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::DeviceId;
use garde::Validate;
use http::header;
use platform::CurrentUser;
use platform::http::{Json, Path, Query};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::adb::{self, AdbError, Cut, Output, quoted};
use super::words::{self, first_line, is_package_name};
use super::{Fault, reach};
use crate::error::Result;
use crate::installation::removal::Removal;
use crate::{Devices, metrics};

/// How much of an output is given.
const MOST_OUTPUT: usize = 1 << 20;
/// How large a picture of the screen may be.
const MOST_PICTURE: usize = 8 << 20;
/// How long what has no time of its own may take.
const WITHIN: Duration = Duration::from_secs(6);
/// What the exit code is where there is none: the command was cut off.
pub const NO_EXIT_CODE: i32 = -1;
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A command line.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct RunShell {
    /// What the device's shell is given, 1 to 1000 characters.
    #[garde(length(chars, min = 1, max = 1000), custom(words::without_nul))]
    command: String,
    /// Seconds, 1 to 60; default 30.
    #[garde(range(min = 1, max = 60))]
    timeout: Option<u64>,
}

/// What a command printed, and how it ended.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShellReply {
    /// What it printed on both of its outputs, 1 MiB at most.
    output: String,
    /// Its exit code; -1 where it was cut off.
    exit_code: i32,
    /// Whether it printed more.
    truncated: bool,
    /// Whether it took longer than its time.
    timed_out: bool,
    /// The same in words.
    message: String,
}

/// The apps on a device.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Packages {
    packages: Vec<String>,
    count: usize,
}

/// Which lines of the log are wanted.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogcatQuery {
    /// How many of the last ones, 1 to 5000; default 100.
    #[garde(range(min = 1, max = 5000))]
    lines: Option<u32>,
    /// Tags and priorities, as in `ActivityManager:I *:S`.
    #[garde(inner(custom(words::log_filter)))]
    filter: Option<String>,
}

/// Lines of a device's log.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Logs {
    logs: String,
}

/// Which app is removed.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UninstallApp {
    /// The Android package.
    #[garde(custom(is_package_name))]
    package_name: String,
}

/// What was done.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Done {
    /// One sentence.
    pub message: String,
}

/// Runs a command in the shell of a device. What it prints beyond 1 MiB, or does beyond its time, is cut off.
#[utoipa::path(post, path = "/devices/{id}/shell", tag = "access", params(("id" = String, Path)), request_body = RunShell,
    responses((status = 200, body = ShellReply), (status = 400), (status = 404), (status = 409, description = "The device does not run, or ADB is disabled on it"), (status = 429), (status = 502), (status = 503)))]
pub async fn run_shell(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Json(body): Json<RunShell>,
) -> Result<Json<ShellReply>> {
    let seconds = body.timeout.unwrap_or(30);
    let task = Task {
        name: "shell",
        tried: "run the command",
        line: &body.command,
        most: MOST_OUTPUT,
        within: Duration::from_secs(seconds),
    };
    let output = run(&state, &user, &id, task).await?;
    let exit_code = output.exit.map_or(NO_EXIT_CODE, i32::from);
    let message = match output.cut {
        None => format!("the command ended with {exit_code}"),
        Some(Cut::TooLong) => {
            "the output was longer than 1 MiB; the command was cut off".to_owned()
        }
        Some(Cut::TooLate) => format!("the command took longer than {seconds} s and was cut off"),
    };
    Ok(Json(ShellReply {
        output: text(&output),
        exit_code,
        truncated: output.cut == Some(Cut::TooLong),
        timed_out: output.cut == Some(Cut::TooLate),
        message,
    }))
}

/// Lists the apps on a device.
#[utoipa::path(get, path = "/devices/{id}/packages", tag = "access", params(("id" = String, Path)), responses((status = 200, body = Packages), (status = 404), (status = 409), (status = 502), (status = 504)))]
pub async fn list_device_packages(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<Packages>> {
    let packages = packages(&state, &user, &id, WITHIN).await?;
    Ok(Json(Packages {
        count: packages.len(),
        packages,
    }))
}

/// The Android packages on a device, as it tells them within a time.
///
/// # Errors
/// Where it does not.
pub async fn packages(
    state: &Devices,
    user: &CurrentUser,
    id: &DeviceId,
    within: Duration,
) -> Result<Vec<String>> {
    let task = Task {
        within,
        ..Task::brief("packages", "list its packages", "pm list packages")
    };
    let output = whole(state, user, id, task).await?;
    Ok(words::packages(&text(&output)))
}

/// Shows the properties of a device.
#[utoipa::path(get, path = "/devices/{id}/properties", tag = "access", params(("id" = String, Path)), responses((status = 200, body = BTreeMap<String, String>), (status = 404), (status = 409), (status = 502), (status = 504)))]
pub async fn find_device_properties(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<BTreeMap<String, String>>> {
    let task = Task::brief("properties", "tell its properties", "getprop");
    let output = whole(&state, &user, &id, task).await?;
    Ok(Json(words::properties(&text(&output))))
}

/// Shows the last lines of a device's log.
#[utoipa::path(get, path = "/devices/{id}/logcat", tag = "access", params(("id" = String, Path), LogcatQuery), responses((status = 200, body = Logs), (status = 400), (status = 404), (status = 409), (status = 502), (status = 504)))]
pub async fn find_device_log(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Query(query): Query<LogcatQuery>,
) -> Result<Json<Logs>> {
    let filter = query.filter.unwrap_or_default();
    let words: Vec<String> = filter.split_whitespace().map(quoted).collect();
    let line = format!(
        "logcat -d -t {} {}",
        query.lines.unwrap_or(100),
        words.join(" ")
    );
    let task = Task::brief("logcat", "tell its log", &line);
    let output = run(&state, &user, &id, task).await?;
    Ok(Json(Logs {
        logs: text(&output),
    }))
}

/// Empties a device's log.
#[utoipa::path(post, path = "/devices/{id}/logcat/clear", tag = "access", params(("id" = String, Path)), responses((status = 200, body = Done), (status = 404), (status = 409), (status = 502), (status = 504)))]
pub async fn clear_device_log(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<Done>> {
    let task = Task::brief("logcat-clear", "empty its log", "logcat -c");
    whole(&state, &user, &id, task).await?;
    Ok(Json(Done {
        message: "the log is empty".to_owned(),
    }))
}

/// Takes a picture of a device's screen.
#[utoipa::path(get, path = "/devices/{id}/screenshot", tag = "access", params(("id" = String, Path)), responses((status = 200, body = Vec<u8>, content_type = "image/png"), (status = 404), (status = 409), (status = 502), (status = 504)))]
pub async fn find_screenshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Response> {
    screenshot(&state, &user, &id).await
}

/// Takes a picture of a device's screen.
#[utoipa::path(post, path = "/devices/{id}/screenshot", tag = "access", params(("id" = String, Path)), responses((status = 200, body = Vec<u8>, content_type = "image/png"), (status = 404), (status = 409), (status = 502), (status = 504)))]
pub async fn take_screenshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Response> {
    screenshot(&state, &user, &id).await
}

/// Removes an app from a device.
#[utoipa::path(post, path = "/devices/{id}/uninstall", tag = "access", params(("id" = String, Path)), request_body = UninstallApp,
    responses((status = 200, body = Done), (status = 400), (status = 404), (status = 409, description = "The device does not run, or does not remove the app"), (status = 502), (status = 504)))]
pub async fn uninstall_app(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Json(body): Json<UninstallApp>,
) -> Result<Json<Done>> {
    let line = format!("pm uninstall {}", quoted(&body.package_name));
    let task = Task::brief("uninstall", "remove the app", &line);
    let removal = Removal::begin(&state, &id, &body.package_name).await?;
    let output = run(&state, &user, &id, task).await?;
    let said = text(&output);
    if output.exit != Some(0) || !said.contains("Success") {
        let name = &body.package_name;
        let said = format!("{name} was not removed: {}", first_line(&said));
        return Err(Fault::Refused { device: id, said }.into());
    }
    removal.end().await?;
    Ok(Json(Done {
        message: format!("{} was removed", body.package_name),
    }))
}

async fn screenshot(state: &Devices, user: &CurrentUser, id: &DeviceId) -> Result<Response> {
    let task = Task {
        most: MOST_PICTURE,
        ..Task::brief("screenshot", "take a picture of its screen", "screencap -p")
    };
    let tried = task.tried;
    let picture = whole(state, user, id, task).await?.stdout;
    if !picture.starts_with(PNG) {
        let (device, source) = (id.clone(), AdbError::Malformed);
        return Err(Fault::Adb {
            device,
            tried,
            source,
        }
        .into());
    }
    Ok((
        [
            (header::CONTENT_TYPE, "image/png"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        picture,
    )
        .into_response())
}

/// A command that is given to a device.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The name in metrics.
    pub name: &'static str,
    /// What is tried, as a verb phrase.
    pub tried: &'static str,
    /// The line for the device's shell.
    pub line: &'a str,
    /// How much it may print.
    pub most: usize,
    /// How long it may take.
    pub within: Duration,
}

impl<'a> Task<'a> {
    /// One that takes a moment.
    fn brief(name: &'static str, tried: &'static str, line: &'a str) -> Self {
        Self {
            name,
            tried,
            line,
            most: MOST_OUTPUT,
            within: WITHIN,
        }
    }
}

/// Runs a command on a device of the caller's.
///
/// # Errors
/// Where the device is not reached, or the command did not begin; one that begins and fails is an output.
pub async fn run(
    state: &Devices,
    user: &CurrentUser,
    id: &DeviceId,
    task: Task<'_>,
) -> Result<Output> {
    let _turn = state.access.commands.begin(id)?;
    let until = Instant::now() + task.within;
    let late = || Fault::Adb {
        device: id.clone(),
        tried: task.tried,
        source: AdbError::Late,
    };
    let reached = timeout_at(until, reach::adb(state, &user.into(), id)).await;
    let stream = reached.map_err(|_| late())??;
    let output = adb::shell(stream, task.line, task.most, until).await;
    let result = match &output {
        Ok(Output { cut: None, .. }) => "done",
        Ok(_) => "cut",
        Err(_) => "failed",
    };
    metrics::command(task.name, result);
    Ok(output.map_err(|source| Fault::Adb {
        device: id.clone(),
        tried: task.tried,
        source,
    })?)
}

/// The same for what is of no use in part.
async fn whole(
    state: &Devices,
    user: &CurrentUser,
    id: &DeviceId,
    task: Task<'_>,
) -> Result<Output> {
    let output = run(state, user, id, task).await?;
    let source = match (output.cut, output.exit) {
        (Some(Cut::TooLate), _) => AdbError::Late,
        (Some(Cut::TooLong), _) => AdbError::Malformed,
        (None, Some(0)) => return Ok(output),
        (None, _) => {
            let said = text(&output);
            let said = format!("the device did not {}: {}", task.tried, first_line(&said));
            return Err(Fault::Refused {
                device: id.clone(),
                said,
            }
            .into());
        }
    };
    let (device, tried) = (id.clone(), task.tried);
    Err(Fault::Adb {
        device,
        tried,
        source,
    }
    .into())
}

/// What a command printed, as text.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.all).into_owned()
}
