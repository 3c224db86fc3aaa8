//! Steps that are made here.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use platform::objects::ObjectError;
use platform::problem::causes;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::remote::is_url;
use super::worker::result_folder;
use super::{Fault, Work};
use crate::Media;
use crate::stitch::{self, Colour, StitchParams};
use crate::task::TaskType;
use crate::text::{self, TextMode, TextParams};
use crate::upload::MAX_SIZE;
use crate::video::ffmpeg::{self, Limits};
use crate::video::{Part, VideoParams};

/// The highest picture of a text, in pixels.
const HIGHEST: u32 = 8_000;
/// The time that such a picture may take.
const TEXT: Duration = Duration::from_secs(20);
const LARGEST_CLIP: u64 = 64 << 20;
const LARGEST_VIDEO: u64 = 256 << 20;

/// Makes a step and stores it; the keys of the objects.
pub async fn make(state: &Media, work: &Work, percent: &AtomicI16) -> Result<Vec<String>, Fault> {
    let closed = |_| Fault::passing("INTERNAL", "no core could be had");
    let core = state.cores.clone().acquire_owned().await.map_err(closed)?;
    // Closures share the permit: one that runs on after its worker is gone still counts.
    let core = Arc::new(core);
    let (file, extension) = match work.kind {
        TaskType::ImageStitch => make_stitch(state, work, &core, percent).await?,
        TaskType::TextProcess => make_text(state, work).await?,
        TaskType::VideoCompose => make_video(state, work, &core, percent).await?,
        kind @ (TaskType::BasicClean | TaskType::ModelPose12 | TaskType::VideoGenerate) => {
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

async fn make_text(state: &Media, work: &Work) -> Result<(Bytes, &'static str), Fault> {
    let params: TextParams = params(work)?;
    let text = match params.mode {
        TextMode::Subtitles => return Ok((params.subtitles().into(), "srt")),
        TextMode::Text | TextMode::Image => params.text(),
    };
    let text =
        text.map_err(|missing| Fault::lasting("INVALID", format!("{missing} is missing")))?;
    if params.mode == TextMode::Text {
        return Ok((text.into(), "txt"));
    }
    // Letters of the font are three fifths as wide as they are high.
    let columns = (params.width - params.size) * 5 / (params.size * 3);
    let lines = text::wrap(&text, columns.max(1) as usize);
    let rows = u32::try_from(lines.len()).unwrap_or(u32::MAX);
    let height = rows
        .saturating_mul(params.size * 5 / 4)
        .saturating_add(params.size);
    if height > HIGHEST {
        let message = format!("the picture would be higher than {HIGHEST} pixels");
        return Err(Fault::lasting("TOO_LARGE", message));
    }
    let folder = folder()?;
    write(&folder.path().join("text.txt"), lines.join("\n").as_bytes()).await?;
    let colour = |colour: Colour| colour.to_string().replace('#', "0x");
    let canvas = format!(
        "color=c={}:s={}x{height}:d=1",
        colour(params.background),
        params.width
    );
    let letters = format!(
        "drawtext=textfile='{}':fontfile='{}':expansion=none:fontsize={}:fontcolor={}:x={}:y={}:line_spacing={}",
        folder.path().join("text.txt").display(),
        state.config.font.display(),
        params.size,
        colour(params.colour),
        params.size / 2,
        params.size / 2,
        params.size / 8,
    );
    let out = folder.path().join("out.png");
    let mut arguments: Vec<OsString> = [
        "-nostdin",
        "-loglevel",
        "error",
        "-f",
        "lavfi",
        "-i",
        &canvas,
        "-vf",
        &letters,
    ]
    .map(OsString::from)
    .to_vec();
    arguments.extend(["-frames:v", "1"].map(OsString::from));
    arguments.push(out.clone().into());
    ffmpeg::run(
        &state.config.ffmpeg,
        arguments,
        &limits(state, TEXT, MAX_SIZE as u64),
    )
    .await?;
    Ok((whole(&out).await?, "png"))
}

async fn make_video(
    state: &Media,
    work: &Work,
    core: &Arc<OwnedSemaphorePermit>,
    percent: &AtomicI16,
) -> Result<(Bytes, &'static str), Fault> {
    let params: VideoParams = params(work)?;
    let folder = folder()?;
    let mut parts = Vec::with_capacity(work.inputs.len());
    for (index, input) in work.inputs.iter().enumerate() {
        let file = read(state, input, index, LARGEST_CLIP).await?;
        let invalid = || {
            Fault::lasting(
                "INPUT_INVALID",
                format!("input {index} is no picture, video or sound"),
            )
        };
        let part = Part::of(&file).ok_or_else(invalid)?;
        if part == Part::Picture {
            // The program would wait for ever for a picture that it cannot read.
            let picture = file.clone();
            let checked = blocking(core, move || stitch::check(&picture)).await?;
            let invalid = |error| Fault::lasting("INPUT_INVALID", format!("input {index} {error}"));
            checked.map_err(invalid)?;
        }
        parts.push(part);
        write(&folder.path().join(index.to_string()), &file).await?;
        let done = (index + 1) * 30 / work.inputs.len();
        percent.store(i16::try_from(done).unwrap_or_default(), Ordering::Relaxed);
    }
    let sounds = parts.iter().filter(|part| **part == Part::Sound).count();
    if sounds > 1 || sounds == parts.len() {
        return Err(Fault::lasting(
            "INPUT_INVALID",
            "at least one picture or clip is needed, and at most one sound",
        ));
    }
    if !params.caption.is_empty() {
        let columns = params.width * 5 / (params.caption_size * 3);
        let lines = text::wrap(&params.caption, columns.max(1) as usize);
        write(
            &folder.path().join("caption.txt"),
            lines.join("\n").as_bytes(),
        )
        .await?;
    }
    let arguments = params.arguments(folder.path(), &parts, &state.config.font, LARGEST_VIDEO);
    // A little more than the program itself is told to keep to, so that one is known that was cut.
    let limits = limits(state, state.config.compose_deadline, LARGEST_VIDEO * 2);
    ffmpeg::run(&state.config.ffmpeg, arguments, &limits).await?;
    let file = whole(&folder.path().join("out.mp4")).await?;
    if file.len() as u64 >= LARGEST_VIDEO {
        return Err(Fault::lasting(
            "TOO_LARGE",
            "the video would be larger than 256 MiB",
        ));
    }
    Ok((file, "mp4"))
}

fn limits(state: &Media, time: Duration, output: u64) -> Limits {
    Limits {
        time,
        memory: state.config.ffmpeg_memory,
        output,
    }
}

/// A folder of its own, gone with the work.
fn folder() -> Result<TempDir, Fault> {
    let full = |error| Fault::passing("DISK_FULL", format!("no folder could be made: {error}"));
    TempDir::with_prefix("media-").map_err(full)
}

async fn write(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let full = |error| Fault::passing("DISK_FULL", format!("a file could not be written: {error}"));
    tokio::fs::write(path, bytes).await.map_err(full)
}

async fn whole(path: &Path) -> Result<Bytes, Fault> {
    let absent = |_| Fault::lasting("INPUT_INVALID", "nothing came of these inputs");
    tokio::fs::read(path).await.map(Bytes::from).map_err(absent)
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
