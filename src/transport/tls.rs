//! TLS: which roots are trusted, and what a failed handshake means in words.

use std::io;
use std::sync::Arc;

use once_cell::sync::{Lazy, OnceCell};
use rustls::crypto::{CryptoProvider, KeyProvider, ring};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::SigningKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, PeerIncompatible,
    RootCertStore,
};

use super::wire::{Io, Tls};
use crate::config::{CaFile, environment_var};
use crate::error::{Error, ErrorKind, words};
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
    Ok(Tls::new(session, under))
}

/// The system's roots, else Mozilla's; read when the first TLS connection is made.
fn system_config() -> Result<&'static Arc<ClientConfig>, Error> {
    static CONFIG: Lazy<PerProcess<OnceCell<Arc<ClientConfig>>>> = Lazy::new(PerProcess::default);
    CONFIG.get().get_or_try_init(|| {
        let (file, dirs) = (
            environment_var("SSL_CERT_FILE").filter(|file| !file.is_empty()),
            environment_var("SSL_CERT_DIR").filter(|dirs| !dirs.is_empty()),
        );
        let found = match (file, dirs) {
            (None, None) => system_roots(),
            (file, dirs) => {
                let mut found =
                    rustls_native_certs::load_certs_from_paths(file.map(AsRef::as_ref), None);
                for dir in dirs.iter().flat_map(std::env::split_paths) {
                    let more = rustls_native_certs::load_certs_from_paths(None, Some(&dir));
                    found.certs.extend(more.certs);
                }
                found
            }
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() && (file.is_some() || dirs.is_some()) {
            return Err(Error::misuse(
                "there is no certificate where SSL_CERT_FILE and SSL_CERT_DIR say, in the \
                 environment: correct or unset them",
            ));
        }
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

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether the peer said why it broke off: in TLS 1.3 it may do so when we think that we are done.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(cause(error), Some(rustls::Error::AlertReceived(_)))
}

/// Why a handshake failed, in words.
pub(super) fn reason(error: &io::Error) -> String {
    match cause(error) {
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
            CertificateError::BadSignature => {
                "its certificate's signature is not that of the authority it names (is ca_file \
                 that of an earlier one?)"
                    .into()
            }
            CertificateError::Other(other) => match other.0.to_string().as_str() {
                "CaUsedAsEndEntity" => {
                    "its certificate is an authority's own (CA:TRUE), which cannot be a server's: \
                     make it one with basicConstraints=CA:FALSE"
                        .into()
                }
                other => format!("its certificate is refused: {}", spelled(other)),
            },
            other => format!(
                "its certificate is refused: {}",
                spelled(&other.to_string())
            ),
        },
        Some(rustls::Error::AlertReceived(alert)) => match alert {
            AlertDescription::CertificateRequired => {
                "it asks for a client certificate, which gptalk has none of".into()
            }
            AlertDescription::HandshakeFailure => {
                "it broke off the handshake: it may want a client certificate, which gptalk has \
                 none of, or other ciphers"
                    .into()
            }
            AlertDescription::ProtocolVersion => OLD.into(),
            other => format!("it broke off: {}", spelled(&format!("{other:?}"))),
        },
        Some(rustls::Error::PeerIncompatible(why)) => match why {
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => OLD.into(),
            other => format!("it is incompatible: {}", spelled(&format!("{other:?}"))),
        },
        Some(rustls::Error::PeerMisbehaved(why)) => {
            format!("it misbehaves: {}", spelled(&format!("{why:?}")))
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS (is it an http:// service?)".into()
        }
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection".into()
        }
        None => words(error),
    }
}

const OLD: &str = "it speaks no version of TLS that is spoken here (1.2 and 1.3)";

/// A variant's name as words; what is in words already stays.
fn spelled(name: &str) -> String {
    let mut words = String::new();
    let mut last = ' ';
    for c in name.chars() {
        if c.is_ascii_uppercase() && last.is_ascii_lowercase() {
            words.push(' ');
            words.push(c.to_ascii_lowercase());
        } else {
            words.push(if words.is_empty() {
                c.to_ascii_lowercase()
            } else {
                c
            });
        }
        last = c;
    }
    words
}
