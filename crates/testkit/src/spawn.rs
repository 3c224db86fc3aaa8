//! Starts processes that the kernel ends with the test.

use std::io;
use std::process::{Child, Command};
use std::sync::{LazyLock, mpsc};
use std::thread;

use embedded::process::die_with_parent;
use nix::sys::signal::Signal;

type Request = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel ends a child with the thread that spawned it, and a test's thread may end before the test does.
static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
    let (requests, received) = mpsc::channel::<Request>();
    thread::spawn(move || {
        for (mut command, answer) in received {
            die_with_parent(&mut command, Signal::SIGKILL);
            let _ = answer.send(command.spawn());
        }
    });
    requests
});

/// Starts a process that ends no later than ours.
pub fn spawn(command: Command) -> io::Result<Child> {
    let (answer, answered) = mpsc::channel();
    SPAWNER.send((command, answer)).map_err(io::Error::other)?;
    answered.recv().map_err(io::Error::other)?
}
