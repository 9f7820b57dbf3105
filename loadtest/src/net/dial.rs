//! From a destination to a connection that takes requests.

use super::{Address, Destination, Failed, Failure, Http, Options, Payload};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// A connection's sending half.
pub(super) enum Sender {
    One(http1::SendRequest<Payload>),
    Two(http2::SendRequest<Payload>),
}

/// Dials within the deadline. `turn` spreads dials over a host's addresses; when one refuses, the others are tried, as any client does.
pub(super) async fn dial(to: &Destination, options: &Options, turn: usize) -> Result<Sender, Failed> {
    match tokio::time::timeout(options.dial_timeout, connect(to, options, turn)).await {
        Ok(result) => result,
        Err(_) => Err(Failed::new(Failure::Dial, "dial: timed out")),
    }
}

async fn connect(to: &Destination, options: &Options, turn: usize) -> Result<Sender, Failed> {
    match &to.address {
        Address::Unix(path) => {
            let io = UnixStream::connect(path).await.map_err(|e| Failed::dialling(&e))?;
            handshake(io, options.http == Http::Two).await
        }
        Address::Tcp(addresses) => {
            let mut result = Err(io::Error::other("no address"));
            for i in 0..addresses.len() {
                result = TcpStream::connect(addresses[(turn + i) % addresses.len()]).await;
                if result.is_ok() {
                    break;
                }
            }
            let io = result.map_err(|e| Failed::dialling(&e))?;
            // Without it a small request waits for the acknowledgement of the one before.
            io.set_nodelay(true).map_err(|e| Failed::dialling(&e))?;
            match (&to.tls, &options.tls) {
                (None, _) => handshake(io, options.http == Http::Two).await,
                (Some(name), Some(config)) => {
                    let connector = tokio_rustls::TlsConnector::from(config.clone());
                    let tls =
                        connector.connect(name.clone(), io).await.map_err(|e| Failed::new(Failure::Dial, format!("TLS: {e}")))?;
                    let two = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                    if options.http == Http::Two && !two {
                        return Err(Failed::new(Failure::Dial, "TLS: the target does not offer HTTP/2"));
                    }
                    handshake(tls, two).await
                }
                (Some(_), None) => Err(Failed::new(Failure::Dial, "TLS: not configured")),
            }
        }
    }
}

async fn handshake<I>(io: I, two: bool) -> Result<Sender, Failed>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = TokioIo::new(io);
    // The connection's task ends with its sender, or with the runtime; its error reaches the requests that it carries.
    if two {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1 << 20).initial_connection_window_size(8 << 20);
        let (sender, connection) = builder.handshake(io).await.map_err(|e| Failed::waiting(&e))?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Sender::Two(sender))
    } else {
        let (sender, connection) = http1::Builder::new().handshake(io).await.map_err(|e| Failed::waiting(&e))?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Sender::One(sender))
    }
}
