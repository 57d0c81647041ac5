//! Idle connections, one pool for each client and its clones.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::body::Framing;
use super::http::Connection;
use super::wire::Pump;
use crate::config::{CaFile, Config};
use crate::proxy::Proxy;
use crate::sys::{PerProcess, lock};

/// How long a connection stays idle before it is not used again.
const MAX_AGE: Duration = Duration::from_secs(15);
/// How many connections stay idle.
const MAX_IDLE: usize = 16;
/// How long a connection is waited for whose last reply was left at its `[DONE]`, with the end of
/// the body still to come: a new connection costs more than this.
const DRAIN: Duration = Duration::from_millis(5);
/// How much of that end is read, in bytes: a service may go on sending.
const MAX_DRAINED: usize = 128 << 10;

/// Where a connection goes, and how; connections with equal routes serve for each other.
pub(crate) struct Route {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub proxy: Option<Proxy>,
    pub ca_file: Option<Arc<CaFile>>,
    /// What is sent has a key in it that others could read: to private addresses only.
    pub private_only: bool,
}

impl Route {
    pub fn new(config: &Config) -> Route {
        Route {
            https: config.base_url.https,
            host: config.base_url.host.clone(),
            port: config.base_url.port,
            proxy: config.proxy.clone(),
            ca_file: config.ca_file.clone(),
            private_only: config.exposes_key(),
        }
    }

    fn serves(&self, other: &Route) -> bool {
        let same_roots = match (&self.ca_file, &other.ca_file) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        same_roots
            && self.https == other.https
            && self.port == other.port
            && self.host == other.host
            && self.private_only == other.private_only
            && self.proxy == other.proxy
    }
}

struct Idle {
    connection: Connection,
    /// Where its last body had not come to its end yet.
    undrained: Option<Framing>,
    since: Instant,
}

/// Idle connections. The child of a fork finds an empty pool.
#[derive(Default)]
pub(crate) struct Pool {
    idle: PerProcess<Mutex<Vec<Idle>>>,
}

impl Pool {
    /// A connection that is open and has nothing unread, the one used last first.
    pub(super) fn take(&self, route: &Route) -> Option<Connection> {
        loop {
            let mut idle = {
                let mut all = lock(self.idle.get());
                all.retain(|idle| idle.since.elapsed() < MAX_AGE);
                let at = all
                    .iter()
                    .rposition(|idle| idle.connection.wire.route.serves(route))?;
                all.remove(at)
            };
            if idle.is_clean() {
                idle.connection.wire.reused = true;
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, connection: Connection, undrained: Option<Framing>) {
        let mut all = lock(self.idle.get());
        if all.len() >= MAX_IDLE {
            all.remove(0);
        }
        all.push(Idle {
            connection,
            undrained,
            since: Instant::now(),
        });
    }
}

impl Idle {
    /// Reads the last body to its end, if that has come, and makes sure that nothing follows it.
    fn is_clean(&mut self) -> bool {
        let wire = &mut self.connection.wire;
        if let Some(framing) = &mut self.undrained {
            let until = Instant::now() + DRAIN;
            let mut room = MAX_DRAINED;
            loop {
                match framing.skip(&mut wire.input) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(_) => return false,
                }
                // What has come is read; for more there is a little time.
                let left = until.saturating_duration_since(Instant::now());
                if !wire.is_readable(left) || !matches!(wire.receive(), Pump::Data) {
                    return false;
                }
                match room.checked_sub(wire.input.unread().len()) {
                    Some(less) => room = less,
                    None => return false,
                }
            }
        }
        wire.input.unread().is_empty() && !wire.is_readable(Duration::ZERO)
    }
}
