//! Exec, attach and port-forward: a byte proxy to the runtime's streaming server.
//!
//! The runtime gives a URL with a token for one use. The client's upgrade request goes there as it came; after the 101
//! both connections are spliced. SPDY and WebSocket pass alike, nothing is parsed.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use runtime::starts::Place;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::serve::{self, Body};

/// Copied at once in each direction.
const BUFFER: usize = 4096;

/// The runtime's server answers an upgrade at once; longer than this means it is stuck.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);

/// Streams a caller wants, from the query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wanted {
    /// `input`, `output`, `error`, `tty` are true for `1` and `true`. With a TTY there is no stderr.
    /// `None` when not a single stream is wanted.
    pub fn parse(query: &[(String, String)]) -> Option<Self> {
        let on = |name: &str| query.iter().any(|(key, value)| key == name && matches!(value.as_str(), "1" | "true"));
        let (stdin, stdout, tty) = (on("input"), on("output"), on("tty"));
        let stderr = on("error") && !tty;
        (stdin || stdout || stderr).then_some(Self { stdin, stdout, stderr, tty })
    }
}

/// True when the request asks to leave HTTP.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    let listed =
        |value: &HeaderValue| value.to_str().is_ok_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade")));
    headers.contains_key(UPGRADE) && headers.get_all(CONNECTION).iter().any(listed)
}

/// Sends `request` on to `url` and, when the runtime agrees, copies both ways until one side ends, or nothing moves
/// for `idle`. Anything but a 101 is handed back as it came. `place` is held until the command behind the URL has started.
pub async fn proxy(request: Request<Incoming>, url: &str, idle: Duration, place: Place) -> Response<Body> {
    match tokio::time::timeout(UPGRADE_TIMEOUT, open(request, url, idle, place)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::warn!(%error, "runtime's streaming server not reached");
            serve::text(StatusCode::INTERNAL_SERVER_ERROR, format!("error dialing backend: {error}\n"))
        }
        Err(_) => serve::text(StatusCode::GATEWAY_TIMEOUT, "runtime's streaming server does not answer\n"),
    }
}

async fn open(mut request: Request<Incoming>, url: &str, idle: Duration, place: Place) -> io::Result<Response<Body>> {
    let target: Uri = url.parse().map_err(io::Error::other)?;
    let authority = target.authority().ok_or_else(|| io::Error::other("runtime gave a URL without an address"))?.clone();
    let socket = TcpStream::connect(authority.as_str()).await?;
    socket.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    crate::task::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "runtime's stream ended");
        }
    });

    let path = target.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::new(Empty::new());
    *onward.method_mut() = request.method().clone();
    *onward.uri_mut() = path.parse().map_err(io::Error::other)?;
    *onward.headers_mut() = request.headers().clone();
    for name in [HOST, CONTENT_LENGTH, TRANSFER_ENCODING] {
        onward.headers_mut().remove(name);
    }
    onward.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(io::Error::other)?);

    let mut answer = sender.send_request(onward).await.map_err(io::Error::other)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()));
    }
    let mut response = Response::new(serve::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    response.headers_mut().remove(CONTENT_LENGTH);
    crate::task::spawn(async move {
        let upgrades = tokio::try_join!(hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
        match upgrades {
            Ok((client, runtime)) => {
                let ended = place.during(splice(TokioIo::new(client), TokioIo::new(runtime), idle)).await;
                tracing::debug!(result = ?ended, "stream ended");
            }
            Err(error) => tracing::debug!(%error, "upgrade not completed"),
        }
    });
    Ok(response)
}

/// Why a splice ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The runtime closed its side: the command or the connection is over.
    Runtime,
    /// Both sides, or a connection, went away.
    Client,
    /// Nothing moved for the idle time.
    Idle,
}

/// Copies both ways. The client may close its half and still read; when the runtime closes, all is over.
pub async fn splice<C, R>(client: C, runtime: R, idle: Duration) -> Ended
where
    C: AsyncRead + AsyncWrite,
    R: AsyncRead + AsyncWrite,
{
    let began = Instant::now();
    let moved = AtomicU64::new(0);
    let (client_in, mut client_out) = tokio::io::split(client);
    let (runtime_in, mut runtime_out) = tokio::io::split(runtime);
    let quiet = async {
        loop {
            let last = began + Duration::from_millis(moved.load(Ordering::Relaxed));
            if last.elapsed() >= idle {
                return;
            }
            tokio::time::sleep_until(last + idle).await;
        }
    };
    let upward = async {
        let copied = copy(client_in, &mut runtime_out, began, &moved).await;
        // The runtime sees the end of input; what it still has to say is awaited below. That holds as well when it takes
        // no more input: the client goes on answering frames while a finished command's last output is on its way.
        let _ = runtime_out.shutdown().await;
        if !matches!(copied, Err(Broken::Source)) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        // Whichever ends first ends the stream; the others hold no data that anybody still waits for.
        _ = copy(runtime_in, &mut client_out, began, &moved) => Ended::Runtime,
        () = upward => Ended::Client,
        () = quiet => Ended::Idle,
    };
    if let Err(error) = client_out.shutdown().await {
        tracing::debug!(%error, "client was gone already");
    }
    ended
}

/// Which side of a copy failed.
enum Broken {
    Source,
    Sink,
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    began: Instant,
    moved: &AtomicU64,
) -> Result<(), Broken> {
    let mut buffer = [0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await.map_err(|_| Broken::Source)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await.map_err(|_| Broken::Sink)?;
        to.flush().await.map_err(|_| Broken::Sink)?;
        moved.store(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[test]
    fn streams_come_from_the_query() {
        let parse = |query: &str| Wanted::parse(&serve::query_pairs(Some(query)));
        let wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };
        assert_eq!(parse("command=sh&input=1&output=1&error=1&tty=1"), Some(wanted));
        assert_eq!(parse("output=true&error=1").map(|w| (w.stdout, w.stderr, w.stdin)), Some((true, true, false)));
        assert_eq!(parse("command=ls&tty=1"), None);
        assert_eq!(parse("error=1&tty=1"), None);
    }

    #[test]
    fn upgrades_are_recognised() {
        let mut headers = HeaderMap::new();
        assert!(!wants_upgrade(&headers));
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        assert!(!wants_upgrade(&headers));
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert!(wants_upgrade(&headers));
    }

    #[tokio::test]
    async fn a_closed_half_leaves_the_other_open_until_the_runtime_ends() {
        let (client, near_client) = duplex(64);
        let (runtime, near_runtime) = duplex(64);
        let spliced = crate::task::spawn(splice(near_client, near_runtime, Duration::from_secs(60)));
        let ((mut client_in, mut client_out), (mut runtime_in, mut runtime_out)) = (tokio::io::split(client), tokio::io::split(runtime));
        client_out.write_all(b"input").await.expect("write");
        client_out.shutdown().await.expect("shutdown");
        let mut input = Vec::new();
        runtime_in.read_to_end(&mut input).await.expect("read");
        assert_eq!(input, b"input");
        runtime_out.write_all(b"output").await.expect("write");
        runtime_out.shutdown().await.expect("shutdown");
        let mut output = Vec::new();
        client_in.read_to_end(&mut output).await.expect("read");
        assert_eq!(output, b"output");
        assert_eq!(spliced.await.expect("joins"), Ended::Runtime);
    }

    #[tokio::test]
    async fn an_idle_stream_ends() {
        let (_client, near_client) = duplex(64);
        let (_runtime, near_runtime) = duplex(64);
        let spliced = splice(near_client, near_runtime, Duration::from_millis(50));
        let ended = tokio::time::timeout(Duration::from_secs(10), spliced).await;
        assert_eq!(ended.expect("in time"), Ended::Idle);
    }
}
