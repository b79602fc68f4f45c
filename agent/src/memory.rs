//! The one module of this crate with `unsafe`: the allocator's settings and what it gives back, pages that stay in memory, and what
//! the kernel offers only by number.
#![allow(unsafe_code)]

/// One arena, freed memory given back early (`dependencies.md` 4). Other C libraries than glibc need nothing.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes parameters of the allocator; called first in main, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Starts this program again without the allocator's caches per thread, which keep up to 0.4 MB of small pieces among what is in
/// use; glibc can be told so only by its environment. Returns where that is already so, or cannot be had.
pub fn without_thread_caches() {
    #[cfg(target_env = "gnu")]
    {
        use std::os::unix::process::CommandExt;
        const TUNABLES: &str = "GLIBC_TUNABLES";
        const NO_CACHE: &str = "glibc.malloc.tcache_count=0";
        let before = std::env::var(TUNABLES).unwrap_or_default();
        if before.contains("glibc.malloc.tcache_count") {
            return;
        }
        let Ok(program) = std::env::current_exe() else { return };
        let all = if before.is_empty() { NO_CACHE.to_owned() } else { format!("{before}:{NO_CACHE}") };
        let mut arguments = std::env::args_os();
        let mut again = std::process::Command::new(program);
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        // Comes back only where the program's file was replaced meanwhile: then it goes on as it is.
        let _ = again.args(arguments).env(TUNABLES, all).exec();
    }
}

/// For a quiet moment after a burst: gives back the pages of freed memory, also those between what is still in use.
/// Takes about a millisecond and the allocator's lock.
pub fn trim() {
    // The kernel takes no locked page back.
    let locked = EVERYTHING.load(std::sync::atomic::Ordering::Relaxed);
    if locked {
        // SAFETY: as for mlock2.
        unsafe {
            libc::munlockall();
        }
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own lock and releases only pages that hold nothing.
    unsafe {
        libc::malloc_trim(0);
    }
    if locked {
        // It was allowed before.
        let _ = keep_everything();
    }
}

/// Whether [`keep_everything`] is in force.
static EVERYTHING: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Keeps what of these addresses is in memory there, and what is touched later from then on; reads in nothing by itself.
pub(crate) fn keep(from: usize, to: usize) -> std::io::Result<()> {
    const MLOCK_ONFAULT: libc::c_uint = 1;
    // SAFETY: mlock2 changes whether pages may be reclaimed, never what they hold; an address that is not mapped is an error.
    done(unsafe { libc::syscall(libc::SYS_mlock2, from, to.saturating_sub(from), MLOCK_ONFAULT) })
}

/// The same for all there is and all there will be.
pub(crate) fn keep_everything() -> std::io::Result<()> {
    // SAFETY: as for mlock2.
    done(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) }.into())?;
    EVERYTHING.store(true, std::sync::atomic::Ordering::Relaxed);
    Ok(())
}

/// Where the calling thread's stack is, the lowest address first.
pub(crate) fn own_stack() -> std::io::Result<(usize, usize)> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut lowest, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: pthread_getattr_np fills the attributes of the calling thread, which are read only where it did, and destroyed once.
    let failed = unsafe {
        let mut failed = libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr());
        if failed == 0 {
            failed = libc::pthread_attr_getstack(attributes.as_ptr(), &mut lowest, &mut size);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
        }
        failed
    };
    if failed == 0 { Ok((lowest.addr(), lowest.addr() + size)) } else { Err(std::io::Error::from_raw_os_error(failed)) }
}

/// Ordinary scheduling of the calling thread with this niceness; `slice` is what it asks for at a time (Linux 6.12 and later; older
/// kernels take no notice).
pub(crate) fn schedule(nice: i32, slice: std::time::Duration) -> std::io::Result<()> {
    /// `struct sched_attr` as of Linux 3.14.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: u64::try_from(slice.as_nanos()).unwrap_or(0),
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a structure that lives until the call returns; 0 is the calling thread.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// The best-effort class of disk access for the calling thread, at its highest level.
pub(crate) fn first_at_the_disk() -> std::io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const BEST_EFFORT: libc::c_int = 2 << 13;
    // SAFETY: changes a number of the calling thread; takes no pointers.
    done(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, BEST_EFFORT) })
}

/// One property of the Raspberry Pi's firmware through its mailbox: `file` is `/dev/vcio`. None where it has no such property.
pub(crate) fn firmware_property(file: &std::fs::File, tag: u32) -> std::io::Result<Option<u32>> {
    use std::os::fd::AsRawFd;
    const ANSWERED: u32 = 1 << 31;
    /// `_IOWR(100, 0, char *)`
    const PROPERTY: libc::c_ulong = 3 << 30 | (size_of::<usize>() as libc::c_ulong) << 16 | 100 << 8;
    // Bytes in all; request; tag, room, length, value; end.
    let mut message: [u32; 7] = [28, 0, tag, 4, 0, 0, 0];
    // SAFETY: the driver reads and writes as many bytes as the message's first word says, which is its size.
    done(unsafe { libc::ioctl(file.as_raw_fd(), PROPERTY as _, message.as_mut_ptr()) }.into())?;
    Ok((message[1] == ANSWERED && message[4] & ANSWERED != 0).then_some(message[5]))
}

fn done(result: libc::c_long) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Columns and rows of the terminal that standard output is.
pub(crate) fn terminal_size() -> Option<(usize, usize)> {
    let mut size = std::mem::MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the kernel fills a structure of its own layout; all zero is one, too.
    let size = unsafe {
        if libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
            return None;
        }
        size.assume_init()
    };
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}
