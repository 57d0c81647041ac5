//! The operating system, where `std` does not reach: sockets that never wait long, `fork`, the
//! system's roots, and locks that survive both panics and forks.
//!
//! With `ffi` this is the FFI part of the crate, the only one with `unsafe`: there C calls us,
//! here we call C. What is particular to a system stands here alone, in the two modules `system`.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use once_cell::sync::OnceCell;
use socket2::{Domain, Protocol, Type};

pub(crate) use system::system_roots;

/// How long one call waits at most: half of what a cancel may take.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// Locks. A panic elsewhere leaves what is behind the library's locks in order, for each is held for
/// one step: poison is no reason to refuse chats.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A TCP connection. Reading and writing wait for a [`SLICE`] at most, and fail with `WouldBlock`
/// when it is over.
pub(crate) struct Socket(TcpStream);

/// What a socket is waited for.
#[derive(Clone, Copy)]
enum Wanted {
    /// Something to read, be it the end.
    Input,
    /// Room for output; the end of a connect, good or not.
    Output,
}

impl Socket {
    /// A socket whose connect is on its way. `socket2` sees to it that a program which the host
    /// starts does not inherit it, and that writing to it raises no SIGPIPE on Apple's systems;
    /// elsewhere `std` does.
    pub fn connect(addr: SocketAddr) -> io::Result<Socket> {
        let kind = Domain::for_address(addr);
        let socket = socket2::Socket::new(kind, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // Before the connect: macOS refuses an option where the peer has closed already.
        socket.set_tcp_nodelay(true)?;
        system::limit_waits(&socket)?;
        match socket.connect(&addr.into()) {
            Err(error) if !system::is_under_way(&error) => Err(error),
            _ => Ok(Socket(socket.into())),
        }
    }

    /// Whether the connect has ended, well that is; waits a [`SLICE`]. To be asked until it says
    /// so, and before the socket is used.
    pub fn is_connected(&self) -> io::Result<bool> {
        if !system::wait(&self.0, Wanted::Output, SLICE)? {
            return Ok(false);
        }
        if let Some(error) = self.0.take_error()? {
            return Err(error);
        }
        system::make_usable(&self.0)?;
        Ok(true)
    }

    /// Waits until there is something to read, be it the end; `false` when there is not.
    pub fn wait_readable(&self, limit: Duration) -> io::Result<bool> {
        system::wait(&self.0, Wanted::Input, limit)
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        system::read(&self.0, buf)
    }
}

/// Without `write_vectored`: where `std` writes one buffer it keeps SIGPIPE away, and where it
/// writes several it does not.
impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        system::write(&self.0, buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unix: Linux, macOS, the BSDs.
#[cfg(unix)]
mod system {
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;
    use std::sync::Once;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use rustls_native_certs::CertificateResult;

    use super::{FORKING, FORKS, FORKS_HERE, HELD, HOLDERS, SLICE, Wanted, wait_until};

    /// The kernel keeps to the slice: one system call for a piece, where a socket that does not
    /// block, and `poll`, cost two.
    pub fn limit_waits(socket: &socket2::Socket) -> io::Result<()> {
        socket.set_read_timeout(Some(SLICE))?;
        socket.set_write_timeout(Some(SLICE))
    }

    pub fn make_usable(stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)
    }

    /// Whether a connect goes on; a signal does not stop it.
    pub fn is_under_way(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EINPROGRESS)
            || error.kind() == io::ErrorKind::Interrupted
    }

    /// `false` when the time is up or a signal came.
    pub fn wait(stream: &TcpStream, wanted: Wanted, limit: Duration) -> io::Result<bool> {
        let mut entry = libc::pollfd {
            fd: stream.as_raw_fd(),
            events: match wanted {
                Wanted::Input => libc::POLLIN,
                Wanted::Output => libc::POLLOUT,
            },
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

    pub fn read(mut stream: &TcpStream, buf: &mut [u8]) -> io::Result<usize> {
        stream.read(buf)
    }

    pub fn write(mut stream: &TcpStream, buf: &[u8]) -> io::Result<usize> {
        stream.write(buf)
    }

    /// Has forks counted, and has them wait for [`no_fork`](super::no_fork).
    pub fn watch_forks() {
        static WATCH: Once = Once::new();

        extern "C" fn before() {
            // Forks come one at a time.
            wait_until(|| HOLDERS.fetch_or(FORKING, Ordering::Acquire) & FORKING == 0);
            // A signal handler may fork while its own thread holds on.
            let own = u32::from(HELD.get() > 0);
            wait_until(|| HOLDERS.load(Ordering::Acquire) == FORKING + own);
            FORKS_HERE.set(true);
        }

        extern "C" fn in_the_parent() {
            FORKS_HERE.set(false);
            HOLDERS.fetch_and(!FORKING, Ordering::Release);
        }

        extern "C" fn in_the_child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
            in_the_parent();
        }

        WATCH.call_once(|| {
            // SAFETY: the handlers are plain functions that cannot unwind and use atomics alone;
            // the shared object is never unloaded (NODELETE; macOS keeps one with thread-locals).
            // Where registering fails, for want of memory, a fork goes unnoticed.
            unsafe { libc::pthread_atfork(Some(before), Some(in_the_parent), Some(in_the_child)) };
        });
    }

    /// The roots that the system trusts, where the environment names none.
    #[cfg(not(target_vendor = "apple"))]
    pub fn system_roots() -> CertificateResult {
        use std::path::Path;

        // `load_native_certs` would look at the environment again, at a time when a thread of the
        // host may be changing it.
        const BUNDLES: &[&str] = &[
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/ssl/ca-bundle.pem",
            "/etc/ssl/cert.pem",
            "/usr/local/share/certs/ca-root-nss.crt",
            "/etc/openssl/certs/ca-certificates.crt",
        ];
        // FreeBSD's base system and Android have no bundle.
        const DIRS: &[&str] = &["/etc/ssl/certs", "/system/etc/security/cacerts"];
        fn first(paths: &'static [&str]) -> Option<&'static Path> {
            paths.iter().map(Path::new).find(|path| path.exists())
        }
        let bundle = first(BUNDLES);
        let dir = match bundle {
            Some(_) => None,
            None => first(DIRS),
        };
        rustls_native_certs::load_certs_from_paths(bundle, dir)
    }

    /// The roots that the system trusts. There is no way to them that does without another look at
    /// the environment.
    #[cfg(target_vendor = "apple")]
    pub fn system_roots() -> CertificateResult {
        rustls_native_certs::load_native_certs()
    }
}

/// Windows.
///
/// Its sockets do not block, and are waited for with `select`. Receive timeouts would not do: by
/// Microsoft's documentation a socket is not to be used after one, for data may be lost, and they
/// last half a second at least. Nor would `WSAPoll`, which does not tell of a connect that failed
/// before Windows 10's version 2004.
#[cfg(windows)]
mod system {
    use std::io::{self, Read, Write};
    use std::net::TcpStream;
    use std::os::windows::io::AsRawSocket;
    use std::ptr::null_mut;
    use std::time::Duration;

    use rustls_native_certs::CertificateResult;

    use super::{SLICE, Wanted};

    /// `fd_set`, for one socket: `select` reads as many as it counts.
    #[repr(C)]
    struct Set {
        count: libc::c_uint,
        socket: libc::SOCKET,
    }

    #[link(name = "ws2_32")]
    unsafe extern "system" {
        fn select(
            ignored: libc::c_int,
            input: *mut Set,
            output: *mut Set,
            failed: *mut Set,
            limit: *const libc::timeval,
        ) -> libc::c_int;
    }

    pub fn limit_waits(_: &socket2::Socket) -> io::Result<()> {
        Ok(())
    }

    pub fn make_usable(_: &TcpStream) -> io::Result<()> {
        Ok(())
    }

    /// Whether a connect goes on.
    pub fn is_under_way(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::WouldBlock
    }

    /// `false` when the time is up.
    pub fn wait(stream: &TcpStream, wanted: Wanted, limit: Duration) -> io::Result<bool> {
        let set = || Set {
            count: 1,
            socket: stream.as_raw_socket() as libc::SOCKET,
        };
        let (mut ready, mut refused) = (set(), set());
        let (input, output, failed) = match wanted {
            Wanted::Input => (&raw mut ready, null_mut(), null_mut()),
            // A connect that failed is told apart.
            Wanted::Output => (null_mut(), &raw mut ready, &raw mut refused),
        };
        let limit = limit.min(Duration::from_secs(60));
        let limit = libc::timeval {
            tv_sec: limit.as_secs() as libc::c_long,
            tv_usec: limit.subsec_micros() as libc::c_long,
        };
        // SAFETY: the sets are valid, each has room for the one socket that it counts, `select`
        // writes them only during the call, and `stream` keeps its socket open meanwhile.
        match unsafe { select(0, input, output, failed, &limit) } {
            count @ 0.. => Ok(count > 0),
            // WSAGetLastError is GetLastError.
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub fn read(mut stream: &TcpStream, buf: &mut [u8]) -> io::Result<usize> {
        match wait(stream, Wanted::Input, SLICE)? {
            true => stream.read(buf),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub fn write(mut stream: &TcpStream, buf: &[u8]) -> io::Result<usize> {
        match stream.write(buf) {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    && wait(stream, Wanted::Output, SLICE)? =>
            {
                stream.write(buf)
            }
            done => done,
        }
    }

    /// There is no `fork`.
    pub fn watch_forks() {}

    /// The roots that the system trusts. Looks at the environment again, which the system guards.
    pub fn system_roots() -> CertificateResult {
        rustls_native_certs::load_native_certs()
    }
}

#[cfg(not(any(unix, windows)))]
compile_error!("gptalk runs on Unix and on Windows");

/// How often this process is the child of a fork since the library's first use. Atomics alone: a
/// signal handler may ask.
pub(crate) fn fork_count() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many keep forks waiting, and [`FORKING`]. No lock of `std`'s: to unlock it in the child would
/// be to wake threads that only the parent has.
static HOLDERS: AtomicU32 = AtomicU32::new(0);
/// A fork is on its way, or waits for the holders.
const FORKING: u32 = 1 << 31;

thread_local! {
    /// How often this thread keeps forks waiting: it counts once among the holders.
    static HELD: Cell<u32> = const { Cell::new(0) };
    /// This thread forks: it is in the handlers that others have registered.
    static FORKS_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps a fork waiting, so that the child does not find something half done. Not to be held across
/// I/O or a callback.
pub(crate) fn no_fork() -> NoFork {
    system::watch_forks();
    if HELD.get() == 0 {
        wait_until(|| {
            let may_hold = |holders| holders & FORKING == 0 || FORKS_HERE.get();
            let hold = |holders| may_hold(holders).then_some(holders + 1);
            let held = HOLDERS.fetch_update(Ordering::Acquire, Ordering::Relaxed, hold);
            held.is_ok()
        });
    }
    HELD.set(HELD.get() + 1);
    NoFork(PhantomData)
}

/// Dropped, on the same thread, it lets a fork go on.
pub(crate) struct NoFork(PhantomData<*const ()>);

impl Drop for NoFork {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        if HELD.get() == 0 {
            HOLDERS.fetch_sub(1, Ordering::Release);
        }
    }
}

/// For what takes no longer than a fork, or an option to be set.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        std::thread::sleep(Duration::from_micros(50));
    }
}

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
