//! TLS for the generator: which certificates are trusted, and what is offered by ALPN. The cryptography is ring's.

use super::Http;
use anyhow::{Context as _, bail};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{path::PathBuf, sync::Arc};

/// Which certificates a target may show.
#[derive(Debug, Clone, Default)]
pub enum Trust {
    /// Those of the machine's certificate authorities.
    #[default]
    System,
    /// Those of the authorities in this PEM file.
    Authority(PathBuf),
    /// Any at all.
    Anything,
}

impl Trust {
    /// The configuration for TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// The authorities cannot be read, or there are none.
    pub fn config(&self, http: Http) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let mut config = match self {
            Self::Anything => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAll(provider))).with_no_client_auth()
            }
            _ => builder.with_root_certificates(self.roots()?).with_no_client_auth(),
        };
        config.alpn_protocols = match http {
            Http::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Http::One => vec![b"http/1.1".to_vec()],
            Http::Two => vec![b"h2".to_vec()],
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        if let Self::Authority(path) = self {
            for certificate in CertificateDer::pem_file_iter(path).with_context(|| format!("reading {}", path.display()))? {
                roots.add(certificate.with_context(|| format!("in {}", path.display()))?)?;
            }
            if roots.is_empty() {
                bail!("{} holds no certificate", path.display());
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                bail!("this machine has no certificate authorities: install ca-certificates, or give --ca FILE or --insecure");
            }
        }
        Ok(roots)
    }
}

/// Takes every certificate, but checks that the peer holds its key, so that the cost of a handshake is the real one.
#[derive(Debug)]
struct AcceptAll(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
