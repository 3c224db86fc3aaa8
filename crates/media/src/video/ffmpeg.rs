//! `ffmpeg` as a child process: with bounds on its time, memory and output, and gone with everything it started when
//! the work on it ends, however that ends.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::debug;

use crate::job::Fault;

/// The bounds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In all.
    pub time: Duration,
    /// MiB of address space.
    pub memory: u64,
    /// Bytes of its largest file.
    pub output: u64,
}

/// Kills a process and all it started, where they have not ended.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            // Those that are gone already are no error.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

/// Runs it to its end.
///
/// # Errors
/// Lasting where it refuses its inputs or meets a bound; passing where it cannot be started.
pub async fn run(program: &Path, arguments: Vec<OsString>, limits: &Limits) -> Result<(), Fault> {
    let absent = |error: std::io::Error| {
        Fault::passing(
            "FFMPEG_MISSING",
            format!("ffmpeg could not be run: {error}"),
        )
    };
    // The shell sets bounds that hold for what it becomes, also when this process is gone.
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg("ulimit -v \"$1\"; ulimit -f \"$2\"; ulimit -t \"$3\"; shift 3; exec \"$@\"")
        .arg("sh")
        .arg((limits.memory * 1024).to_string())
        .arg(limits.output.div_ceil(512).to_string())
        .arg((limits.time.as_secs() * 2).max(1).to_string())
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(absent)?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let mut errors = child.stderr.take();
    let told = async {
        let mut text = Vec::new();
        if let Some(errors) = &mut errors {
            // What is beyond is read too, so that it is not stopped by it.
            let _ = errors.take(64 << 10).read_to_end(&mut text).await;
            let _ = tokio::io::copy(errors, &mut tokio::io::sink()).await;
        }
        text
    };
    let ended = timeout(limits.time, async { tokio::join!(told, child.wait()) }).await;
    let Ok((told, status)) = ended else {
        return Err(Fault::lasting("TIMEOUT", "it took too long to make"));
    };
    let status = status.map_err(absent)?;
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    debug!(
        "ffmpeg ended with {status}: {}",
        String::from_utf8_lossy(&told)
    );
    match status.code() {
        Some(126 | 127) => Err(absent(std::io::ErrorKind::NotFound.into())),
        Some(_) => Err(Fault::lasting(
            "INPUT_INVALID",
            "it cannot be made from these inputs",
        )),
        None => Err(Fault::lasting(
            "TOO_LARGE",
            "it takes more memory, time or space than it may",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LIMITS: Limits = Limits {
        time: Duration::from_millis(300),
        memory: 2048,
        output: 1 << 20,
    };

    async fn shell(script: &str, limits: &Limits) -> Result<(), Fault> {
        let arguments = ["-c", script].map(OsString::from).to_vec();
        run(Path::new("/bin/sh"), arguments, limits).await
    }

    fn is_alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    }

    #[tokio::test]
    async fn what_takes_too_long_is_gone_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let began = Instant::now();

        let fault = shell(&script, &LIMITS).await.unwrap_err();

        assert!(matches!(
            fault,
            Fault::Lasting {
                code: "TIMEOUT",
                ..
            }
        ));
        assert!(began.elapsed() < Duration::from_secs(20));
        let pid = std::fs::read_to_string(file).unwrap();
        while is_alive(&pid) {
            assert!(began.elapsed() < Duration::from_secs(20), "{pid} lives on");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn memory_and_output_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("large");
        let limits = Limits {
            time: Duration::from_secs(20),
            ..LIMITS
        };
        let script = format!("exec head -c 20000000 /dev/zero > {}", file.display());

        assert!(shell(&script, &limits).await.is_err());
        assert!(std::fs::metadata(&file).unwrap().len() <= limits.output);
        let bound = format!("[ $(ulimit -v) = {} ]", limits.memory * 1024);
        assert!(shell(&bound, &limits).await.is_ok());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_said_to_be_missing() {
        let fault = run(Path::new("/nowhere/ffmpeg"), Vec::new(), &LIMITS)
            .await
            .unwrap_err();

        assert!(matches!(
            fault,
            Fault::Passing {
                code: "FFMPEG_MISSING",
                ..
            }
        ));
    }
}
