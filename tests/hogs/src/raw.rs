//! The system calls that the safe wrappers do not offer. The one module of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::unistd::Pid;

/// A child that does nothing until it is killed, and dies with this program.
///
/// # Errors
///
/// The kernel's: EAGAIN at a limit of processes, ENOMEM.
pub(crate) fn fork_idle() -> Result<Pid, Errno> {
    let parent = std::process::id();
    // SAFETY: the child calls only what is async-signal-safe (prctl, getppid, pause, _exit) and never returns.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        // SAFETY: plain system calls without pointers; see above.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if u32::try_from(libc::getppid()) != Ok(parent) {
                libc::_exit(0);
            }
            loop {
                libc::pause();
            }
        }
    }
    Ok(Pid::from_raw(pid))
}

/// Puts the calling thread, and those it starts, at real-time priority 1.
///
/// # Errors
///
/// EPERM without CAP_SYS_NICE.
pub(crate) fn real_time() -> Result<(), Errno> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure is complete and outlives the call.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) }).map(drop)
}

/// Keeps all of this program in memory, now and later.
///
/// # Errors
///
/// EPERM or ENOMEM at RLIMIT_MEMLOCK.
pub(crate) fn lock_memory() -> Result<(), Errno> {
    // SAFETY: changes how this process' pages are treated and touches none.
    Errno::result(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }).map(drop)
}

/// Maps the file and reads a byte of each page; the sum, so that nothing is optimised away.
///
/// # Errors
///
/// The kernel's for mmap: ENOMEM, ENODEV.
pub(crate) fn read_mapped(file: &File, length: usize, page: usize) -> Result<u64, Errno> {
    // SAFETY: a new shared, read-only mapping of a file this program alone changes, and never shortens.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let mut sum = 0u64;
    for at in (0..length).step_by(page) {
        // SAFETY: `at` is inside the mapping of `length` bytes.
        sum = sum.wrapping_add(u64::from(unsafe { std::ptr::read_volatile(start.cast::<u8>().add(at)) }));
    }
    // SAFETY: unmaps exactly what was mapped above; nothing points there any more.
    Errno::result(unsafe { libc::munmap(start, length) })?;
    Ok(sum)
}
