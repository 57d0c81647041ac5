//! The operating system, where `std` does not reach: `poll`, `fork`, and locks that survive both
//! panics and forks.
//!
//! With `ffi` this is the FFI part of the crate, the only one with `unsafe`: there C calls us,
//! here we call C. What is particular to a system stands here alone.

#![allow(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use once_cell::sync::OnceCell;

/// Locks. A panic elsewhere leaves what is behind the library's locks in order, for each is held for
/// one step: poison is no reason to refuse chats.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the socket can be read or written; `false` when the time is up or a signal came.
#[cfg(unix)]
fn wait(stream: &TcpStream, events: libc::c_short, limit: Duration) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    let mut entry = libc::pollfd {
        fd: stream.as_raw_fd(),
        events,
        revents: 0,
    };
    let ms = limit.as_millis().min(60_000) as libc::c_int;
    // SAFETY: `entry` is one valid pollfd, which `poll` only writes during the call, and
    // `stream` keeps its descriptor open meanwhile.
    match unsafe { libc::poll(&mut entry, 1, ms) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        ready => Ok(ready > 0),
    }
}

/// Waits until a connect has ended, well or not; `false` when the time is up or a signal came.
#[cfg(unix)]
pub(crate) fn wait_writable(stream: &TcpStream, limit: Duration) -> io::Result<bool> {
    wait(stream, libc::POLLOUT, limit)
}

/// Waits until there is something to read, be it the end; `false` when there is not.
#[cfg(unix)]
pub(crate) fn wait_readable(stream: &TcpStream, limit: Duration) -> io::Result<bool> {
    wait(stream, libc::POLLIN, limit)
}

// Elsewhere `std` has no `poll`: a connect is given a slice and asked for its outcome, and a
// socket is looked at without waiting.
#[cfg(not(unix))]
pub(crate) fn wait_writable(stream: &TcpStream, limit: Duration) -> io::Result<bool> {
    std::thread::sleep(limit.min(Duration::from_millis(5)));
    Ok(stream.take_error()?.is_some() || stream.peer_addr().is_ok())
}

#[cfg(not(unix))]
pub(crate) fn wait_readable(stream: &TcpStream, _limit: Duration) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let seen = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    Ok(!matches!(seen, Err(error) if error.kind() == io::ErrorKind::WouldBlock))
}

/// How often this process is the child of a fork since the library's first use. Atomics alone: a
/// signal handler may ask.
pub(crate) fn fork_count() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Held for reading by who changes what the child of a fork inherits; for writing around a fork.
static NO_FORK: RwLock<()> = RwLock::new(());

/// Keeps a fork waiting, so that the child does not find something half done. Not to be taken
/// twice by a thread, nor held across I/O or a callback.
pub(crate) fn no_fork() -> RwLockReadGuard<'static, ()> {
    watch_forks();
    NO_FORK.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
fn watch_forks() {
    use std::cell::RefCell;
    use std::sync::{Once, RwLockWriteGuard};

    static WATCH: Once = Once::new();

    thread_local! {
        static FORKING: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
    }

    extern "C" fn before() {
        let guard = NO_FORK.write().unwrap_or_else(PoisonError::into_inner);
        // A thread that is ending forks without the guard's shelter.
        let _ = FORKING.try_with(|slot| slot.replace(Some(guard)));
    }

    extern "C" fn in_the_parent() {
        let _ = FORKING.try_with(RefCell::take);
    }

    extern "C" fn in_the_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
        in_the_parent();
    }

    WATCH.call_once(|| {
        // SAFETY: the handlers are plain functions that cannot unwind. They use a lock and a
        // thread-local of the forking thread, which exists in the child too; the shared object is
        // never unloaded (NODELETE). Where registering fails, for want of memory, a fork goes
        // unnoticed.
        unsafe { libc::pthread_atfork(Some(before), Some(in_the_parent), Some(in_the_child)) };
    });
}

#[cfg(not(unix))]
fn watch_forks() {}

/// A value that the child of a fork does not share with its parent: it finds one of its own.
///
/// The parent's value may hold sockets that both would write to, and locks whose owner, another
/// thread, does not exist in the child; so the child never locks them.
pub(crate) struct PerProcess<T> {
    forks: u32,
    value: T,
    in_child: OnceCell<Box<PerProcess<T>>>,
}

/// What becomes of a value in the child of a fork.
pub(crate) trait Inherit {
    /// The child's value. `self` is the parent's, as it was at the fork: it may be locked.
    fn in_child(&self) -> Self;
}

/// Begun anew.
impl<T: Default> Inherit for Mutex<T> {
    fn in_child(&self) -> Self {
        Mutex::default()
    }
}

/// Begun anew.
impl<T> Inherit for OnceCell<T> {
    fn in_child(&self) -> Self {
        OnceCell::new()
    }
}

impl<T: Inherit> PerProcess<T> {
    pub fn new(value: T) -> Self {
        PerProcess {
            forks: fork_count(),
            value,
            in_child: OnceCell::new(),
        }
    }

    pub fn get(&self) -> &T {
        let forks = fork_count();
        let mut cell = self;
        while cell.forks != forks {
            let inherited = || Box::new(PerProcess::new(cell.value.in_child()));
            cell = cell.in_child.get_or_init(inherited);
        }
        &cell.value
    }
}

impl<T: Inherit + Default> Default for PerProcess<T> {
    fn default() -> Self {
        PerProcess::new(T::default())
    }
}
