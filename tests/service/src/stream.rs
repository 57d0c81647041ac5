//! What bytes go through: TCP, or TLS over it.

use rustls::{ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

pub(crate) struct Stream {
    tcp: Arc<TcpStream>,
    /// Boxed for its size: most connections are without.
    tls: Option<Box<ServerConnection>>,
}

impl Stream {
    pub(crate) fn new(tcp: Arc<TcpStream>) -> Stream {
        Stream { tcp, tls: None }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Speaks TLS from here on.
    pub(crate) fn handshake(&mut self, config: &Arc<ServerConfig>) -> io::Result<()> {
        let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        let mut session = Box::new(session);
        while session.is_handshaking() || session.wants_write() {
            session.complete_io(&mut &*self.tcp)?;
        }
        self.tls = Some(session);
        Ok(())
    }

    /// Says that nothing follows, where TLS has a word for that.
    pub(crate) fn notify_close(&mut self) {
        if let Some(session) = &mut self.tls {
            session.send_close_notify();
        }
        // Where the client has gone there is nobody to be told.
        let _ = self.flush();
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(session) => rustls::Stream::new(&mut **session, &mut &*self.tcp).read(bytes),
            None => (&*self.tcp).read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(session) => rustls::Stream::new(&mut **session, &mut &*self.tcp).write(bytes),
            None => (&*self.tcp).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(session) => rustls::Stream::new(&mut **session, &mut &*self.tcp).flush(),
            None => Ok(()),
        }
    }
}
