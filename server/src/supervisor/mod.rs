//! The supervisor: the paths K3s serves beside the Kubernetes API, from which an agent gets its identity.
//!
//! Statuses, bodies and certificate fields are those of K3s v1.36; the one deliberate difference is that a body
//! which is no certificate request gets 400 and never a shared private key (`pki::Ca::sign_csr`).

mod certificates;
pub mod config;
mod connect;
pub mod node_password;
mod status;

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode, Version};

use crate::api::Registry;
use crate::auth::{Caller, Identity, Login, NODES};
use crate::http::{Body, Handled, full};
use crate::pki::Pki;
use crate::tunnel_server::Sessions;
use config::Cluster;
pub use status::Failure;

/// Group of the token's user `node`.
pub const AGENT_GROUP: &str = "k3s:agent";
/// Group of the token's user `server`.
pub const SERVER_GROUP: &str = "k3s:server";
/// Group of bootstrap tokens.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Largest accepted certificate request; a P-256 one has 190 bytes.
const BODY_LIMIT: usize = 64 * 1024;

/// The supervisor's handlers and what they need.
pub struct Supervisor {
    /// The CAs.
    pub pki: Arc<Pki>,
    /// For node passwords and readiness.
    pub registry: Arc<Registry>,
    /// Where upgraded tunnels go.
    pub sessions: Arc<Sessions>,
    /// The cluster's settings.
    pub cluster: Arc<Cluster>,
}

/// What a path is and who may ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    CaCerts,
    Ping,
    Agent(Endpoint),
    Connect,
    /// K3s has it for other servers; this server has no peers.
    OtherServers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Config,
    ClientCa,
    ServerCa,
    Certificate(certificates::Kind),
    ApiServers,
    Readyz,
}

fn path(path: &str) -> Option<Path> {
    use certificates::Kind;
    Some(match path {
        "/cacerts" => Path::CaCerts,
        "/ping" => Path::Ping,
        "/v1-k3s/config" => Path::Agent(Endpoint::Config),
        "/v1-k3s/client-ca.crt" => Path::Agent(Endpoint::ClientCa),
        "/v1-k3s/server-ca.crt" => Path::Agent(Endpoint::ServerCa),
        "/v1-k3s/serving-kubelet.crt" => Path::Agent(Endpoint::Certificate(Kind::ServingKubelet)),
        "/v1-k3s/client-kubelet.crt" => Path::Agent(Endpoint::Certificate(Kind::ClientKubelet)),
        "/v1-k3s/client-kube-proxy.crt" => Path::Agent(Endpoint::Certificate(Kind::KubeProxy)),
        "/v1-k3s/client-k3s-controller.crt" => Path::Agent(Endpoint::Certificate(Kind::Controller)),
        "/v1-k3s/apiservers" => Path::Agent(Endpoint::ApiServers),
        "/v1-k3s/readyz" => Path::Agent(Endpoint::Readyz),
        "/v1-k3s/connect" => Path::Connect,
        "/v1-k3s/encrypt/status" | "/v1-k3s/encrypt/config" | "/v1-k3s/cert/cacerts" | "/v1-k3s/server-bootstrap" | "/v1-k3s/token" => {
            Path::OtherServers
        }
        _ => return None,
    })
}

/// The caller if one of `groups` is theirs; else the failure K3s answers.
fn authorize<'a>(login: &'a Login, groups: &[&str]) -> Result<&'a Identity, Failure> {
    match login {
        Login::Anonymous => Err(Failure::forbidden("forbidden")),
        Login::Rejected => Err(Failure::unauthorized("not authorized")),
        Login::As(identity) if groups.iter().any(|group| identity.in_group(group)) => Ok(identity),
        Login::As(_) => Err(Failure::forbidden("forbidden")),
    }
}

impl Supervisor {
    /// Takes the request if its path is the supervisor's.
    pub fn handle(self: &Arc<Self>, request: Request<Incoming>, caller: Caller) -> Handled {
        match path(request.uri().path()) {
            None => Handled::NotMine(request),
            Some(path) => {
                let this = self.clone();
                Handled::Response(Box::pin(async move {
                    let version = request.version();
                    let mut response = match this.answer(path, request, caller).await {
                        Ok(response) => response,
                        Err(failure) => failure.response(),
                    };
                    if version >= Version::HTTP_2 {
                        response.headers_mut().remove(CONNECTION);
                    }
                    response
                }))
            }
        }
    }

    async fn answer(&self, path: Path, request: Request<Incoming>, caller: Caller) -> Result<Response<Body>, Failure> {
        match path {
            Path::CaCerts => Ok(answer("text/plain", self.pki.server_ca.cert_pem().to_owned())),
            Path::Ping => Ok(answer("text/plain; charset=utf-8", "pong")),
            Path::Connect => {
                let identity = authorize(&caller.supervisor, &[NODES])?;
                connect::upgrade(request, identity, &self.sessions)
            }
            Path::OtherServers => {
                authorize(&caller.supervisor, &[SERVER_GROUP])?;
                Err(Failure::not_found("not found: this server stands alone"))
            }
            Path::Agent(endpoint) => {
                let identity = authorize(&caller.supervisor, &[AGENT_GROUP, NODES, BOOTSTRAPPERS])?;
                self.agent(endpoint, request, identity).await
            }
        }
    }

    async fn agent(&self, endpoint: Endpoint, request: Request<Incoming>, identity: &Identity) -> Result<Response<Body>, Failure> {
        match endpoint {
            Endpoint::Config => Ok(answer("application/json", self.cluster.document())),
            Endpoint::ClientCa => Ok(answer("text/plain", self.pki.client_ca.cert_pem().to_owned())),
            Endpoint::ServerCa => Ok(answer("text/plain", self.pki.server_ca.cert_pem().to_owned())),
            Endpoint::ApiServers => Ok(answer("application/json", format!("[\"{}\"]\n", self.cluster.endpoint()))),
            Endpoint::Readyz => Ok(answer("text/plain; charset=utf-8", "ok")),
            Endpoint::Certificate(kind) => {
                let (parts, body) = request.into_parts();
                let body = read(body).await?;
                let pem = self.certificate(kind, &parts, &body, identity).await?;
                Ok(answer("text/plain; charset=utf-8", pem))
            }
        }
    }
}

async fn read(body: Incoming) -> Result<Bytes, Failure> {
    use http_body_util::{BodyExt, Limited};
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(_) => Err(Failure::bad_request("request body cannot be read")),
    }
}

fn answer(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_decide_as_in_k3s() {
        let user = |name: &str, groups: &[&str]| Login::As(Identity::new(name, groups));
        let agents = &[AGENT_GROUP, NODES, BOOTSTRAPPERS][..];
        let rows: &[(&str, Login, &[&str], u16)] = &[
            ("config-no-credentials", Login::Anonymous, agents, 403),
            ("config-wrong-password", Login::Rejected, agents, 401),
            ("config-user-server", user("server", &[SERVER_GROUP]), agents, 403),
            ("config-ok", user("node", &[AGENT_GROUP]), agents, 200),
            ("config-kube-proxy-certificate", user("system:kube-proxy", &[]), agents, 403),
            ("apiservers-bootstrap-token", user("b", &[BOOTSTRAPPERS]), agents, 200),
            ("connect-basic-auth", user("node", &[AGENT_GROUP]), &[NODES], 403),
            ("encrypt-status-user-node", user("node", &[AGENT_GROUP]), &[SERVER_GROUP], 403),
        ];
        for (name, login, groups, code) in rows {
            let got = authorize(login, groups).map_or_else(|failure| failure.code(), |_| 200);
            assert_eq!(got, *code, "{name}");
        }
    }

    #[test]
    fn unknown_paths_are_left_to_the_api() {
        assert_eq!(path("/v1-k3s/nothing"), None);
        assert_eq!(path("/v1-k3s/p2p"), None);
        assert_eq!(path("/api/v1/nodes"), None);
    }
}
