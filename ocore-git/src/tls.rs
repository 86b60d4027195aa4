//! TLS to a repository's host.

use std::pin::Pin;

use ocore_core::port::{Classify, Error, Result};
use openssl::{
    ssl::{SslConnector, SslMethod, SslVerifyMode},
    x509::X509VerifyResult,
};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::gate::Passage;

/// Encrypts the connection, and checks that it leads to the host: by its name and what the system trusts, or by
/// exactly the certificates that were given for it.
pub(crate) async fn connect(passage: &Passage, far: TcpStream) -> Result<SslStream<TcpStream>> {
    let host = &passage.remote.host;
    let mut builder = SslConnector::builder(SslMethod::tls()).permanent("set up TLS")?;
    match passage.certificates.clone() {
        None => {
            // Where OpenSSL was built from source it does not know where this system keeps its certificates.
            let found = openssl_probe::probe();
            if let Some(file) = found.cert_file {
                builder.set_ca_file(file).permanent("read the certificates that the system trusts")?;
            }
        }
        Some(trusted) => builder.set_verify_callback(SslVerifyMode::PEER, move |_, context| {
            // The chain of a certificate of the host's own making leads nowhere: only the host's own counts.
            let shown = context.chain().and_then(|chain| chain.get(0)).or_else(|| context.current_cert());
            let right =
                shown.and_then(|shown| shown.to_der().ok()).is_some_and(|shown| trusted.contains(&shown));
            if right {
                context.set_error(X509VerifyResult::OK);
            }
            right
        }),
    }
    let mut configuration = builder.build().configure().permanent("set up TLS")?;
    configuration.set_verify_hostname(passage.certificates.is_none());
    let ssl = configuration.into_ssl(host).permanent("set up TLS")?;
    let mut stream = SslStream::new(ssl, far).permanent("set up TLS")?;
    let connected = Pin::new(&mut stream).connect().await;
    let verified = stream.ssl().verify_result();
    match connected {
        Ok(()) => Ok(stream),
        Err(_) if verified != X509VerifyResult::OK && passage.certificates.is_some() => {
            let text =
                "the host is not the one that is trusted: its certificate is none of those given for it";
            Err(Error::permanent(format!("fetch {}: {text}", passage.remote)))
        }
        Err(_) if verified != X509VerifyResult::OK => {
            let reason = verified.error_string();
            let text = format!("fetch {}: the host's certificate is not valid: {reason}", passage.remote);
            Err(Error::permanent(text))
        }
        Err(error) => Err(error).transient(format!("encrypt the connection to {host}")),
    }
}
