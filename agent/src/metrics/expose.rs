//! Text formats and the plain listener.
//!
//! The registry encodes OpenMetrics 1.0. A scraper that does not ask for it gets the classic format 0.0.4, which
//! differs in three things here: counters are described under their full `_total` name, `info` is a gauge, and
//! there is neither `# UNIT` nor `# EOF`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Metrics;
use crate::kubelet::serve::{self, Body};

/// Connections of the plain listener at a time.
const CONNECTIONS: usize = 8;

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
        Ok(body) => serve::answer(StatusCode::OK, format.content_type(), body),
        Err(error) => serve::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Serves `/metrics` in plain HTTP until `stop`.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: watch::Receiver<bool>) {
    let handler = move |request: Request<Incoming>| -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> {
        let response = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => answer(&metrics, request.headers()),
            (_, "/metrics") => serve::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n"),
            (&Method::GET, "/") => serve::text(StatusCode::OK, "edge-agent: metrics are at /metrics\n"),
            _ => serve::text(StatusCode::NOT_FOUND, "404: Page Not Found\n"),
        };
        Box::pin(std::future::ready(response))
    };
    serve::plain(listener, CONNECTIONS, handler, stop).await;
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

    #[test]
    fn openmetrics_only_when_asked_for() {
        let mut headers = HeaderMap::new();
        assert_eq!(Format::wanted(&headers), Format::Classic);
        headers.insert(ACCEPT, "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3".parse().expect("value"));
        assert_eq!(Format::wanted(&headers), Format::OpenMetrics);
    }
}
