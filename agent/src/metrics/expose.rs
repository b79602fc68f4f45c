//! Text formats and the plain listener.
//!
//! The registry encodes OpenMetrics 1.0. A scraper that does not ask for it gets the classic format 0.0.4, which
//! differs in three things here: counters are described under their full `_total` name, `info` is a gauge, and
//! there is neither `# UNIT` nor `# EOF`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::Metrics;
use crate::kubelet::serve::{self, Body};

/// Scrapes of the plain listener at a time; others wait in its queue.
const AT_ONCE: usize = 2;

/// A client that has not asked by then is dropped.
const ASKED_WITHIN: Duration = Duration::from_secs(1);

/// A client that has not taken its answer by then is dropped. Longer than on a good line, for those that scrape over a bad one.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// No answer is longer, 64 KiB: twice what there is on the largest board.
const LONGEST: usize = 64 * 1024;

/// How long the listener pauses after `accept` failed, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// One of the two text formats of Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`
    Classic,
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
}

impl Format {
    /// What the scraper asks for; classic unless OpenMetrics is named.
    pub fn wanted(headers: &HeaderMap) -> Self {
        let openmetrics = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("application/openmetrics-text"));
        if openmetrics { Self::OpenMetrics } else { Self::Classic }
    }

    /// Value of the answer's Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

pub(super) fn render(registry: &Registry, format: Format) -> Result<String, std::fmt::Error> {
    let mut text = String::with_capacity(16 * 1024);
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(match format {
        Format::OpenMetrics => text,
        Format::Classic => classic(&text),
    })
}

/// OpenMetrics as written by the registry → classic text format.
fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1024);
    let mut held_help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            held_help = help.split_once(' ');
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = kind.split_once(' ') else { continue };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, help)) = held_help.take() {
                out.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Answer of `/metrics` for these request headers.
pub(crate) fn answer(metrics: &Metrics, headers: &HeaderMap) -> Response<Body> {
    let format = Format::wanted(headers);
    match metrics.render(format) {
        Ok(body) if body.len() > LONGEST => {
            tracing::warn!(bytes = body.len(), "metrics are longer than they may be");
            serve::text(StatusCode::INTERNAL_SERVER_ERROR, "metrics are longer than 64 KiB\n")
        }
        Ok(body) => serve::answer(StatusCode::OK, format.content_type(), body),
        Err(error) => serve::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Serves `/metrics` in plain HTTP until `stop`, one request a connection.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            // accept() is cancel safe.
            accepted = listener.accept() => accepted,
            () = serve::stopped(&mut stop) => return,
        };
        match accepted {
            Ok((socket, _)) => {
                let metrics = Arc::clone(&metrics);
                crate::task::spawn(async move {
                    // Late or broken: the client asks again.
                    let _ = tokio::time::timeout(ASKED_WITHIN + TAKEN_WITHIN, connection(socket, &metrics)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, metrics: &Metrics) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let response = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => answer(metrics, request.headers()),
            (_, "/metrics") => serve::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n"),
            (&Method::GET, "/") => serve::text(StatusCode::OK, "edge-agent: metrics are at /metrics\n"),
            _ => serve::text(StatusCode::NOT_FOUND, "404: Page Not Found\n"),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASKED_WITHIN)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "metrics: connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn counters_are_described_by_their_full_name() {
        let openmetrics = "# HELP a_b Some help.\n# TYPE a_b counter\na_b_total 3\n# HELP i Build.\n# TYPE i info\n\
                           i_info{version=\"1\"} 1\n# HELP g_seconds G.\n# TYPE g_seconds gauge\n# UNIT g_seconds seconds\ng_seconds 1.5\n# EOF\n";
        let wanted = "# HELP a_b_total Some help.\n# TYPE a_b_total counter\na_b_total 3\n# HELP i_info Build.\n\
                      # TYPE i_info gauge\ni_info{version=\"1\"} 1\n# HELP g_seconds G.\n# TYPE g_seconds gauge\ng_seconds 1.5\n";
        assert_eq!(classic(openmetrics), wanted);
    }

    #[test]
    fn both_formats_hold_the_node_pressure_and_the_agent() {
        let metrics = Metrics::new("0.1.0");
        metrics.lease_renewed(Duration::from_millis(20));
        let classic = metrics.render(Format::Classic).expect("renders");
        assert!(classic.contains("edge_agent_build_info{version=\"0.1.0\"} 1\n"), "{classic}");
        assert!(classic.contains("edge_agent_lease_renew_failures_total{reason=\"timeout\"} 0\n"));
        assert!(classic.contains("# TYPE process_resident_memory_bytes gauge\n"));
        if std::path::Path::new("/proc/pressure/memory").exists() {
            assert!(classic.contains("# TYPE node_pressure_memory_waiting_seconds_total counter\n"));
        }
        assert!(!classic.contains("# EOF"));
        let openmetrics = metrics.render(Format::OpenMetrics).expect("renders");
        assert!(openmetrics.ends_with("# EOF\n"));
        assert!(openmetrics.contains("# TYPE edge_agent_lease_renew_failures counter\n"));
    }

    #[tokio::test]
    async fn scrapes_beyond_two_wait_and_who_does_not_ask_is_dropped() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = watch::channel(false);
        let server = crate::task::spawn(serve(listener, Arc::new(Metrics::new("0.1.0")), stopped));
        let began = std::time::Instant::now();
        let mut silent = [TcpStream::connect(address).await.expect("taken"), TcpStream::connect(address).await.expect("taken")];
        let mut third = TcpStream::connect(address).await.expect("queued");
        third.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        third.read_to_string(&mut answer).await.expect("answered and closed");
        assert!(began.elapsed() >= ASKED_WITHIN, "both places were taken");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("edge_agent_build_info"), "{answer}");
        for silent in &mut silent {
            let mut said = Vec::new();
            silent.read_to_end(&mut said).await.expect("closed");
            assert!(!String::from_utf8_lossy(&said).contains("edge_agent"));
        }
        stop.send(true).expect("server listens");
        server.await.expect("joins");
    }

    #[test]
    fn openmetrics_only_when_asked_for() {
        let mut headers = HeaderMap::new();
        assert_eq!(Format::wanted(&headers), Format::Classic);
        headers.insert(ACCEPT, "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3".parse().expect("value"));
        assert_eq!(Format::wanted(&headers), Format::OpenMetrics);
    }
}
