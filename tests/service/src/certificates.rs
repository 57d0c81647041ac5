//! Certificates to speak TLS with, good ones and bad ones, made on the spot.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
pub use rcgen::{self, CertificateParams};
use rcgen::{BasicConstraints, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ALL_VERSIONS, RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::sync::Arc;

/// Signs certificates.
pub struct Authority {
    certificate: CertificateDer<'static>,
    /// What leads a client from a certificate of this authority to the root, which it has itself.
    path: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A root.
    pub fn new(name: &str) -> Authority {
        let (params, key) = (authority_params(name), new_key());
        let certificate = params.self_signed(&key).expect("a certificate");
        Authority {
            certificate: certificate.into(),
            path: Vec::new(),
            issuer: Issuer::new(params, key),
        }
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Authority {
        let (params, key) = (authority_params(name), new_key());
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate: CertificateDer<'_> = certificate.expect("a certificate").into();
        Authority {
            path: [std::slice::from_ref(&certificate), &*self.path].concat(),
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for a server of these names and addresses, valid for ages.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_with(names, |_| ())
    }

    /// The same, with something changed before it is signed.
    pub fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let (params, key) = (server_params(names, change), new_key());
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.expect("a certificate").into();
        Identity {
            chain: [&[certificate], &*self.path].concat(),
            key,
        }
    }

    /// Its certificate, in PEM: for whoever trusts it.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// Asks clients for certificates of this authority, for [`Identity::config_with`].
    pub fn client_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .expect("a verifier")
    }
}

/// A server's certificate, with what leads to its root, and its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Identity {
    /// A certificate that nobody but itself speaks for, with something changed before it is signed.
    pub fn self_signed(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let (params, key) = (server_params(names, change), new_key());
        let certificate = params.self_signed(&key).expect("a certificate");
        Identity {
            chain: vec![certificate.into()],
            key,
        }
    }

    /// The same without what leads to the root, as servers are often set up by mistake.
    pub fn without_path(mut self) -> Identity {
        self.chain.truncate(1);
        self
    }

    /// The certificates, in PEM.
    pub fn pem(&self) -> String {
        let pems = self.chain.iter().map(|der| pem("CERTIFICATE", der));
        pems.collect()
    }

    /// The key, in PEM.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key.serialize_der())
    }

    /// A server that shows this certificate, for [`Builder::tls`](crate::Builder::tls).
    pub fn config(&self) -> ServerConfig {
        self.config_with(ALL_VERSIONS, WebPkiClientVerifier::no_client_auth())
    }

    /// The same, of these versions of TLS, that asks its clients for certificates.
    pub fn config_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        clients: Arc<dyn ClientCertVerifier>,
    ) -> ServerConfig {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions that the provider knows")
            .with_client_cert_verifier(clients)
            .with_single_cert(self.chain.clone(), PrivateKeyDer::from(key))
            .expect("a certificate and its key")
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn server_params(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    change(&mut params);
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
