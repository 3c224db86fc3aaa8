//! What a child does between `fork` and `exec`. This is the only unsafe code of the crate.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid, setsid};

/// Gives the child a session of its own, so that neither a closed terminal nor a signal to the parent's group ends it,
/// and none of the parent's open files.
#[expect(
    unsafe_code,
    reason = "a hook between fork and exec; it makes system calls only and allocates nothing"
)]
pub fn detach(command: &mut Command) {
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            close_on_exec();
            Ok(())
        });
    }
}

/// Has the kernel send the child a signal when the *thread* that spawns it ends; call it from a thread that lives.
#[expect(
    unsafe_code,
    reason = "a hook between fork and exec; it makes system calls only and allocates nothing"
)]
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = getpid();
    unsafe {
        command.pre_exec(move || {
            death_signal(signal)?;
            // The parent may have died before the line above.
            if getppid() == parent {
                Ok(())
            } else {
                Err(Errno::ESRCH.into())
            }
        });
    }
}

#[cfg(target_os = "linux")]
fn death_signal(signal: Signal) -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(signal)?)
}

#[cfg(not(target_os = "linux"))]
fn death_signal(_signal: Signal) -> io::Result<()> {
    Ok(())
}

/// A listening socket that a process manager passed to the parent must not live on in a detached child.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "close_range has no safe wrapper; it only marks descriptors"
)]
fn close_on_exec() {
    use nix::libc::{CLOSE_RANGE_CLOEXEC, SYS_close_range, c_uint, syscall};
    let (first, last): (c_uint, c_uint) = (3, c_uint::MAX);
    // Kernels before 5.11 refuse it, and their descriptors stay open: harmless but for those a manager passed.
    unsafe { syscall(SYS_close_range, first, last, CLOSE_RANGE_CLOEXEC) };
}

#[cfg(not(target_os = "linux"))]
fn close_on_exec() {}
