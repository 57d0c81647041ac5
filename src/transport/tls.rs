//! TLS: which roots are trusted, and what a failed handshake means in words.

use std::io;
use std::sync::Arc;

use once_cell::sync::{Lazy, OnceCell};
use rustls::crypto::{CryptoProvider, KeyProvider, ring};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::SigningKey;
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore};

use super::wire::{Io, Tls};
use crate::config::{CaFile, environment_var};
use crate::error::{Error, ErrorKind};
use crate::sys::{PerProcess, system_roots};

/// Begins a TLS session over a connection.
pub(super) fn wrap(under: Io, host: &str, ca_file: Option<&Arc<CaFile>>) -> Result<Tls, Error> {
    let config = match ca_file {
        Some(file) => file.tls.get().get_or_try_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(file.certificates.iter().cloned());
            client_config(roots)
        })?,
        None => system_config()?,
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        Error::misuse(format!(
            "base_url: \"{host}\" cannot stand in a certificate"
        ))
    })?;
    let session = ClientConnection::new(config.clone(), name)
        .map_err(|error| Error::new(ErrorKind::Tls, format!("TLS cannot begin: {error}")))?;
    Ok(Tls { session, under })
}

/// The system's roots, else Mozilla's; read when the first TLS connection is made.
fn system_config() -> Result<&'static Arc<ClientConfig>, Error> {
    static CONFIG: Lazy<PerProcess<OnceCell<Arc<ClientConfig>>>> = Lazy::new(PerProcess::default);
    CONFIG.get().get_or_try_init(|| {
        let (file, dir) = (
            environment_var("SSL_CERT_FILE"),
            environment_var("SSL_CERT_DIR"),
        );
        let found = match (file, dir) {
            (None, None) => system_roots(),
            (file, dir) => rustls_native_certs::load_certs_from_paths(
                file.map(AsRef::as_ref),
                dir.map(AsRef::as_ref),
            ),
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        client_config(roots)
    })
}

fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(CryptoProvider {
        key_provider: &NoKeys,
        ..ring::default_provider()
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Nobody is to be given a certificate of ours: what signs with private keys stays out of the library,
/// which is 50 kB.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(
        &self,
        _: PrivateKeyDer<'static>,
    ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("there are no private keys".into()))
    }
}

/// Why a handshake failed, in words.
pub(super) fn reason(error: &io::Error) -> String {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer => {
                "its certificate is signed by an authority that is not trusted here (set ca_file \
                 to the authority's certificate)"
                    .into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet (is this machine's clock right?)".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another host name".into()
            }
            other => format!("its certificate is refused: {other}"),
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS (is it an http:// service?)".into()
        }
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection".into()
        }
        None => error.to_string(),
    }
}
