//! The device itself: what it is, and what has been pushed to it and installed on it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::listen::{BindError, Bound, Ports};

/// A device remembers this many files and as many packages; further ones are refused.
const MOST: usize = 1024;
/// Lines of its log, of which the oldest go first, and how long each may be.
const LOG_LINES: usize = 1024;
const LONGEST_LINE: usize = 1024;

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct DeviceProfile {
    /// Its name: the serial number, and what scrcpy shows.
    pub name: String,
    /// Whose it is at present, for the page; empty where unknown.
    pub lease: String,
    /// `ro.product.model`.
    pub model: String,
    /// `ro.build.version.release`.
    pub android_version: String,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Dots per inch.
    pub density: u32,
}

impl Default for DeviceProfile {
    fn default() -> Self {
        Self {
            name: "device-stub".into(),
            lease: String::new(),
            model: "Cloudphone Stub".into(),
            android_version: "14".into(),
            width: 1080,
            height: 1920,
            density: 420,
        }
    }
}

/// An installed app.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// How large its file was.
    pub bytes: u64,
}

/// A file on the device, of which only the size is kept.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Pushed {
    /// How large it is.
    pub bytes: u64,
    /// It began as every APK does, which is a ZIP archive.
    pub is_archive: bool,
}

impl Pushed {
    /// Counts the next piece of the file.
    pub fn grow(&mut self, piece: &[u8]) {
        for (position, byte) in (self.bytes..2).zip(piece) {
            let fits = *byte == b"PK"[position as usize];
            self.is_archive = fits && (position == 0 || self.is_archive);
        }
        self.bytes += piece.len() as u64;
    }
}

/// A device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    profile: DeviceProfile,
    state: Mutex<State>,
    received: AtomicU64,
    sent: AtomicU64,
    busy_nanos: AtomicU64,
}

/// What a device has used since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Vitals {
    /// Time spent on answers.
    pub cpu: Duration,
    /// Bytes in memory, roughly.
    pub memory: u64,
    /// Bytes of the files and apps on it.
    pub storage: u64,
    /// Bytes that clients sent.
    pub received: u64,
    /// Bytes that clients were sent.
    pub sent: u64,
}

/// Roughly what the memory of an entry of a map takes.
const ENTRY: u64 = 256;

#[derive(Debug, Default)]
struct State {
    contents: Contents,
    /// Grows with each change of the contents.
    version: u64,
    log: VecDeque<String>,
}

/// What is on a device, and outlives its end where somebody keeps it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Contents {
    packages: BTreeMap<String, Package>,
    files: BTreeMap<String, Pushed>,
}

impl State {
    /// The contents, to be changed.
    fn change(&mut self) -> &mut Contents {
        self.version += 1;
        &mut self.contents
    }
}

impl Device {
    /// Makes a device with nothing installed.
    pub fn new(profile: DeviceProfile) -> Self {
        Self::with(profile, Contents::default())
    }

    /// Makes a device on which this is.
    pub fn with(profile: DeviceProfile, contents: Contents) -> Self {
        let state = State {
            contents,
            ..State::default()
        };
        let device = Self(Arc::new(Inner {
            profile,
            state: Mutex::new(state),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
        }));
        device.write_log(format!(
            "I/Stub    (    1): {} is up",
            device.profile().name
        ));
        device
    }

    /// What is on it, and how often that has changed since it was made.
    pub fn contents(&self) -> (Contents, u64) {
        let state = self.state();
        (state.contents.clone(), state.version)
    }

    /// What it has used since it was made.
    pub fn vitals(&self) -> Vitals {
        let inner = &self.0;
        let (entries, storage) = {
            let contents = &self.state().contents;
            let files = contents.files.values().map(|file| file.bytes);
            let packages = contents.packages.values().map(|package| package.bytes);
            let entries = contents.files.len() + contents.packages.len();
            (entries as u64, files.chain(packages).sum())
        };
        Vitals {
            cpu: Duration::from_nanos(inner.busy_nanos.load(Ordering::Relaxed)),
            memory: size_of::<Inner>() as u64 + entries * ENTRY,
            storage,
            received: inner.received.load(Ordering::Relaxed),
            sent: inner.sent.load(Ordering::Relaxed),
        }
    }

    /// Does a piece of work for a client who sent so many bytes, and counts it.
    pub fn work<T>(&self, received: usize, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.0
            .received
            .fetch_add(received as u64, Ordering::Relaxed);
        done
    }

    /// Counts bytes that go to a client.
    pub fn sends(&self, bytes: usize) {
        self.0.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How often its contents have changed since it was made.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// What it says of itself.
    pub fn profile(&self) -> &DeviceProfile {
        &self.0.profile
    }

    /// The apps that are installed, by package name.
    pub fn packages(&self) -> BTreeMap<String, Package> {
        self.state().contents.packages.clone()
    }

    /// Takes the three ports of a device, or none.
    pub async fn bind(self, address: IpAddr, ports: Ports) -> Result<Bound, BindError> {
        Bound::bind(self, address, ports).await
    }

    /// Takes the ports and behaves like a device until told to stop.
    pub async fn serve(
        self,
        address: IpAddr,
        adb: u16,
        webrtc: u16,
        scrcpy: u16,
        stop: CancellationToken,
    ) -> io::Result<()> {
        self.bind(
            address,
            Ports {
                adb,
                webrtc,
                scrcpy,
            },
        )
        .await?
        .run(stop)
        .await;
        Ok(())
    }

    /// Remembers that a file was pushed; `false` where there is no room.
    pub fn push(&self, path: String, file: Pushed) -> bool {
        let mut state = self.state();
        let files = &state.contents.files;
        let fits = files.len() < MOST || files.contains_key(&path);
        if fits {
            state.change().files.insert(path, file);
        }
        fits
    }

    /// A file that was pushed.
    pub fn file(&self, path: &str) -> Option<Pushed> {
        self.state().contents.files.get(path).cloned()
    }

    /// Forgets a file; `false` where there was none.
    pub fn remove_file(&self, path: &str) -> bool {
        self.state().change().files.remove(path).is_some()
    }

    /// The lines of its log, oldest first.
    pub fn log(&self) -> Vec<String> {
        self.state().log.iter().cloned().collect()
    }

    /// Adds a line to its log.
    pub fn write_log(&self, mut line: String) {
        line.truncate(line.floor_char_boundary(LONGEST_LINE));
        let log = &mut self.state().log;
        if log.len() >= LOG_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }

    /// Empties its log.
    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    /// Installs an app as Android's package manager would.
    pub fn install(&self, name: &str, file: &Pushed) -> Result<(), &'static str> {
        if !file.is_archive {
            return Err("INSTALL_PARSE_FAILED_NOT_APK: it is no ZIP archive");
        }
        let mut state = self.state();
        let packages = &state.contents.packages;
        if packages.len() >= MOST && !packages.contains_key(name) {
            return Err("INSTALL_FAILED_INSUFFICIENT_STORAGE");
        }
        let package = Package { bytes: file.bytes };
        state.change().packages.insert(name.to_owned(), package);
        Ok(())
    }

    /// Removes an app; `false` where it was not installed.
    pub fn uninstall(&self, name: &str) -> bool {
        self.state().change().packages.remove(name).is_some()
    }

    // No code that holds the lock can panic half way.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
