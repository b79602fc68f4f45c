//! One try of one probe.

use std::time::Duration;

use runtime::{Client, ContainerId};

use super::http::{self, Get};
use crate::api::pod::{Container, HttpGetAction, IntOrString, Probe};
use crate::pod::env;

const MAX_OUTPUT: usize = 10 << 10;

/// How a try ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Success,
    /// It answered, with something to tell the user.
    Warning(String),
    Failure(String),
    /// It could not be tried.
    Unknown(String),
}

/// Tries once. `address` is the pod's.
pub(super) async fn run(client: &Client, container: &Container, id: &ContainerId, probe: &Probe, address: &str) -> Outcome {
    let limit = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
    if let Some(exec) = &probe.exec {
        // Only literal variables are expanded in a probe's command.
        let literal =
            container.env.iter().filter(|v| v.value_from.is_none()).map(|v| (v.name.clone(), v.value.clone().into_bytes())).collect();
        let command: Vec<String> = exec.command.iter().map(|word| env::expand(word, &literal)).collect();
        return run_command(client, id, &command, limit).await;
    }
    if let Some(action) = &probe.http_get {
        let request = match request(container, action, address, "kube-probe/1.36") {
            Ok(request) => request,
            Err(problem) => return Outcome::Unknown(problem),
        };
        return match http::get(&request, limit).await {
            Ok(answer) if answer.left_host => Outcome::Warning(format!("Probe terminated redirects, Response body: {}", answer.body)),
            Ok(answer) if (200..400).contains(&answer.code) => Outcome::Success,
            Ok(answer) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.code)),
            Err(problem) => Outcome::Failure(problem),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let Some(port) = port_number(container, &action.port) else {
            return Outcome::Unknown(format!("couldn't find port: {:?}", action.port));
        };
        let host = if action.host.is_empty() { address } else { &action.host };
        return match tokio::time::timeout(limit, http::connect(host, port)).await {
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(problem)) => Outcome::Failure(problem),
            Err(_) => Outcome::Failure(format!("dial tcp {host}:{port}: i/o timeout")),
        };
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.as_deref().unwrap_or_default();
        return match runtime::health::check(address, action.port, service, "kube-probe/1.36", limit).await {
            Ok(()) => Outcome::Success,
            Err(problem) => Outcome::Failure(problem),
        };
    }
    Outcome::Unknown("missing probe handler".to_owned())
}

async fn run_command(client: &Client, id: &ContainerId, command: &[String], limit: Duration) -> Outcome {
    match client.exec_sync(id, command, limit).await {
        Ok(output) => {
            let mut bytes = output.stdout.to_vec();
            bytes.extend_from_slice(&output.stderr);
            bytes.truncate(MAX_OUTPUT);
            if output.exit_code == 0 { Outcome::Success } else { Outcome::Failure(String::from_utf8_lossy(&bytes).into_owned()) }
        }
        Err(e) if e.event_message().contains("code = DeadlineExceeded") => {
            Outcome::Failure(format!("command timed out: \"{}\" timed out after {}s", command.join(" "), limit.as_secs()))
        }
        Err(e) => Outcome::Unknown(e.event_message()),
    }
}

/// The request of an httpGet action.
pub(in crate::pod) fn request(
    container: &Container,
    action: &HttpGetAction,
    address: &str,
    user_agent: &'static str,
) -> Result<Get, String> {
    let port = port_number(container, &action.port)
        .ok_or_else(|| format!("couldn't find port: {:?} for container {}", action.port, container.name))?;
    let path = if action.path.starts_with('/') { action.path.clone() } else { format!("/{}", action.path) };
    Ok(Get {
        https: action.scheme.eq_ignore_ascii_case("https"),
        host: if action.host.is_empty() { address.to_owned() } else { action.host.clone() },
        port,
        path,
        headers: action.http_headers.clone(),
        user_agent,
    })
}

/// A port by number, or by name among the container's.
pub(in crate::pod) fn port_number(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|n| *n > 0),
        IntOrString::String(name) => {
            let named = container.ports.iter().find(|p| p.name == *name).map(|p| p.container_port);
            named.or_else(|| name.parse().ok())
        }
    }
}
