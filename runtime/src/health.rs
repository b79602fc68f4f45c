//! `grpc.health.v1.Health/Check` of a workload: what a `grpc` probe asks. It stands here because this crate has the
//! gRPC client already; nothing of the container runtime is involved.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks `host:port`, unencrypted, whether `service` (empty: the whole server) is serving. Connecting and asking take at
/// most `limit` together. The error is a kubelet's probe output.
pub async fn check(host: &str, port: u16, service: &str, user_agent: &'static str, limit: Duration) -> Result<(), String> {
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let end = tokio::time::Instant::now() + limit;
    let endpoint = Endpoint::from_shared(format!("http://{shown}")).and_then(|endpoint| endpoint.user_agent(user_agent));
    let endpoint = endpoint.map_err(|e| format!("error: failed to connect service at \"{shown}\": {e}"))?;
    let target = (host.to_owned(), port);
    let connecting = endpoint.connect_with_connector(tower::service_fn(move |_: Uri| {
        let target = target.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(TcpStream::connect((target.0.as_str(), target.1)).await?)) }
    }));
    let channel = match tokio::time::timeout_at(end, connecting).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(format!("error: failed to connect service at \"{shown}\": {}", root(&error))),
        Err(_) => {
            return Err(format!("timeout: failed to connect service \"{shown}\" within {}s: context deadline exceeded", limit.as_secs()));
        }
    };
    let late = || format!("timeout: health rpc did not complete within {}s", limit.as_secs());
    let asked = async {
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| format!("error: health rpc probe failed: {}", root(&error)))?;
        let request = Request::new(HealthCheckRequest { service: service.to_owned() });
        let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
        match client.unary(request, PathAndQuery::from_static(CHECK), codec).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(status) if status.code() == Code::Unimplemented => {
                Err(format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}", status.message()))
            }
            Err(status) if status.code() == Code::DeadlineExceeded => Err(late()),
            Err(status) => Err(format!("error: health rpc probe failed: {}", status.message())),
        }
    };
    match tokio::time::timeout_at(end, asked).await {
        Ok(Ok(SERVING)) => Ok(()),
        Ok(Ok(status)) => Err(format!("service unhealthy (responded with \"{}\")", name(status))),
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err(late()),
    }
}

fn name(status: i32) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

/// The deepest cause: what the kernel said.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use hyper_util::rt::TokioExecutor;
    use std::convert::Infallible;
    use tokio::net::TcpListener;

    /// Trailers only where `status` is a gRPC code, else one message with `answer` as its status field.
    async fn server(answer: Option<u8>, code: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), CHECK);
                assert!(request.headers()["user-agent"].to_str().unwrap().starts_with("kube-probe/1.36"));
                let body: Vec<u8> = match answer {
                    Some(status) => vec![0, 0, 0, 0, 2, 8, status],
                    None => Vec::new(),
                };
                let mut response = hyper::Response::new(http_body_util::Full::new(Bytes::from(body)));
                response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                response.headers_mut().insert("grpc-status", code.parse().unwrap());
                Ok::<_, Infallible>(response)
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
        port
    }

    async fn asked(port: u16, limit: Duration) -> Result<(), String> {
        check("127.0.0.1", port, "", "kube-probe/1.36", limit).await
    }

    #[tokio::test]
    async fn answers_read_as_a_kubelet_says_them() {
        let second = Duration::from_secs(20);
        assert_eq!(asked(server(Some(1), "0").await, second).await, Ok(()));
        let unhealthy = asked(server(Some(2), "0").await, second).await;
        assert_eq!(unhealthy, Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()));
        let stranger = asked(server(None, "12").await, second).await.unwrap_err();
        assert!(stranger.starts_with("error: this server does not implement the grpc health protocol"), "{stranger}");
        let failing = asked(server(None, "13").await, second).await.unwrap_err();
        assert!(failing.starts_with("error: health rpc probe failed: "), "{failing}");
    }

    #[tokio::test]
    async fn nobody_there_and_nobody_answering_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Accepted by the kernel, answered by nobody.
        let silent = asked(port, Duration::from_millis(200)).await.unwrap_err();
        assert!(silent.starts_with("timeout: "), "{silent}");
        drop(listener);
        let refused = asked(port, Duration::from_secs(20)).await.unwrap_err();
        assert!(refused.starts_with("error: failed to connect service at \"127.0.0.1:") && refused.contains("refused"), "{refused}");
    }
}
