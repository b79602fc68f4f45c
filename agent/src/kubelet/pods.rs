//! Answers about pods: lists, logs, commands, forwarded ports, usage.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use runtime::starts::Place;
use runtime::{ContainerId, SandboxId};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::logs::{Invalid, LogOptions};
use super::router::PodPath;
use super::serve::{self, Body, query_pairs};
use super::stream::{self, Wanted};
use super::{Inner, cadvisor, log_stream, stats};
use crate::metrics::Format;
use crate::pod::{ContainerView, PodView};

/// Limit of `/run` commands; the API has no parameter for it.
const RUN: Duration = Duration::from_secs(120);

/// An answer that ends the matter early.
type Refused = Box<Response<Body>>;

fn refuse<T>(status: StatusCode, words: String) -> Result<T, Refused> {
    Err(Box::new(serve::text(status, words)))
}

/// The answer, whichever way it came about.
fn either(result: Result<Response<Body>, Refused>) -> Response<Body> {
    result.unwrap_or_else(|refused| *refused)
}

/// Why there is no log to read yet, in the kubelet's words.
fn waiting_words(container: &str, pod: &str, reason: &str) -> String {
    let why = match reason {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        "" => "ContainerCreating",
        other => other,
    };
    format!("container {container:?} in pod {pod:?} is waiting to start: {why}")
}

impl Inner {
    /// `/pods`: what the agent was assigned, with the status it computed last.
    pub(super) fn pods(&self) -> Response<Body> {
        let items: Vec<Value> = self.view.list().iter().map(|seen| serde_json::to_value(&*seen.pod).unwrap_or_default()).collect();
        serve::json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    /// `/runningpods/`: what the runtime says runs.
    pub(super) async fn running_pods(&self) -> Response<Body> {
        let observed = match runtime::observe::observe(&self.runtime).await {
            Ok(observed) => observed,
            Err(error) => return serve::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
        let items: Vec<Value> = observed
            .values()
            .filter_map(|pod| {
                let containers: Vec<Value> = pod
                    .containers
                    .iter()
                    .filter(|container| container.state == runtime::cri::ContainerState::ContainerRunning)
                    .map(|container| json!({"name": container.name, "image": container.image_ref, "resources": {}}))
                    .collect();
                let metadata = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid.as_str()});
                (!containers.is_empty()).then(|| json!({"metadata": metadata, "spec": {"containers": containers}, "status": {}}))
            })
            .collect();
        serve::json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    fn find(&self, path: &PodPath) -> Option<Arc<PodView>> {
        match &path.uid {
            Some(uid) => self.view.get(&uid.as_str().into()),
            None => self.view.find(&path.namespace, &path.name),
        }
        .filter(|seen| seen.pod.metadata.namespace == path.namespace && seen.pod.metadata.name == path.name)
    }

    /// `/containerLogs`.
    pub(super) async fn container_logs(&self, path: &PodPath, container: &str, query: Option<&str>) -> Response<Body> {
        either(self.try_logs(path, container, query).await)
    }

    async fn try_logs(&self, path: &PodPath, container: &str, query: Option<&str>) -> Result<Response<Body>, Refused> {
        let pod = &path.name;
        let options = match LogOptions::parse(&query_pairs(query), OffsetDateTime::now_utc()) {
            Ok(options) => options,
            Err(Invalid::Undecodable) => {
                return refuse(StatusCode::BAD_REQUEST, "{\"message\": \"Unable to decode query.\"}".to_owned());
            }
            Err(Invalid::Invalid) => {
                return refuse(StatusCode::UNPROCESSABLE_ENTITY, "{\"message\": \"Invalid request.\"}".to_owned());
            }
        };
        let Some(seen) = self.find(path) else {
            return refuse(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist"));
        };
        if !seen.pod.every_container().any(|spec| spec.name == container) {
            return refuse(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}"));
        }
        let state = seen.containers.get(container).cloned().unwrap_or_default();
        let (file, following) = if options.previous {
            let Some(file) = state.previous_log_path else {
                let words = format!("previous terminated container {container:?} in pod {pod:?} not found");
                return refuse(StatusCode::BAD_REQUEST, words);
            };
            (file, None)
        } else {
            let Some(file) = state.log_path else {
                let reason = state.waiting_reason.as_deref().unwrap_or_default();
                return refuse(StatusCode::BAD_REQUEST, waiting_words(container, pod, reason));
            };
            (file, state.id)
        };
        let (view, uid, name) = (self.view.clone(), seen.pod.uid(), container.to_owned());
        let running = move || {
            let state = view.get(&uid).and_then(|seen| seen.containers.get(&name).cloned());
            following.is_some() && state.is_some_and(|state| state.running && state.id == following)
        };
        match log_stream::open(file, options, running).await {
            Ok(data) => {
                let body = StreamBody::new(data.map_ok(hyper::body::Frame::data)).boxed_unsync();
                let mut response = Response::new(body);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                Ok(response)
            }
            Err(error) => {
                let words = format!("failed to read the log of container {container:?} in pod {pod:?}: {error}");
                refuse(StatusCode::BAD_REQUEST, words)
            }
        }
    }

    /// The newest instance of a container that runs.
    fn running(&self, path: &PodPath, container: &str) -> Result<ContainerId, Refused> {
        let Some(seen) = self.find(path) else {
            return refuse(StatusCode::NOT_FOUND, "pod does not exist".to_owned());
        };
        match seen.containers.get(container) {
            Some(ContainerView { id: Some(id), running: true, .. }) => Ok(id.clone()),
            _ => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({container:?})")),
        }
    }

    /// `/exec`.
    pub(super) async fn exec(&self, path: &PodPath, container: &str, request: Request<Incoming>) -> Response<Body> {
        either(self.try_exec(path, container, request).await)
    }

    async fn try_exec(&self, path: &PodPath, container: &str, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let query = query_pairs(request.uri().query());
        let streams = wanted(&query)?;
        let id = self.running(path, container)?;
        let command: Vec<String> = query.into_iter().filter(|(key, _)| key == "command").map(|(_, value)| value).collect();
        let place = self.runtime.place_to_start().await;
        self.proxy(request, place, async { self.runtime.exec(&id, &command, streams).await }).await
    }

    /// `/attach`.
    pub(super) async fn attach(&self, path: &PodPath, container: &str, request: Request<Incoming>) -> Response<Body> {
        either(self.try_attach(path, container, request).await)
    }

    async fn try_attach(&self, path: &PodPath, container: &str, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let mut streams = wanted(&query_pairs(request.uri().query()))?;
        let id = self.running(path, container)?;
        // Whether there is a terminal was settled when the container was made; the query may not contradict it.
        let seen = self.find(path);
        let spec = seen.as_ref().and_then(|seen| seen.pod.every_container().find(|spec| spec.name == container));
        streams.tty = spec.is_some_and(|spec| spec.tty);
        streams.stderr &= !streams.tty;
        self.proxy(request, Place::default(), async { self.runtime.attach(&id, streams).await }).await
    }

    /// `/portForward`.
    pub(super) async fn port_forward(&self, path: &PodPath, request: Request<Incoming>) -> Response<Body> {
        either(self.try_port_forward(path, request).await)
    }

    async fn try_port_forward(&self, path: &PodPath, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let query = query_pairs(request.uri().query());
        let mut ports: Vec<u16> = Vec::new();
        for (_, value) in query.iter().filter(|(key, _)| key == "port") {
            for port in value.split(',') {
                match port.parse() {
                    Ok(port) if port > 0 => ports.push(port),
                    _ => return refuse(StatusCode::BAD_REQUEST, format!("invalid port {port:?}")),
                }
            }
        }
        let sandbox: Option<SandboxId> = match self.find(path) {
            Some(seen) => seen.sandbox.clone(),
            None => return refuse(StatusCode::NOT_FOUND, "pod does not exist".to_owned()),
        };
        let Some(sandbox) = sandbox else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("pod not found ({:?})", path.name));
        };
        self.proxy(request, Place::default(), async { self.runtime.port_forward(&sandbox, &ports).await }).await
    }

    /// Asks the runtime for a URL and splices the client to it. `place` is that of a command this starts.
    async fn proxy(
        &self,
        request: Request<Incoming>,
        place: Place,
        url: impl Future<Output = runtime::Result<String>>,
    ) -> Result<Response<Body>, Refused> {
        if !stream::wants_upgrade(request.headers()) {
            return refuse(StatusCode::BAD_REQUEST, "Upgrade request required\n".to_owned());
        }
        let idle = Duration::from_secs(self.config.streaming_idle_timeout_seconds);
        match url.await {
            Ok(url) => Ok(stream::proxy(request, &url, idle, place).await),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, with_causes(&error)),
        }
    }

    /// `/run`: `cmd` split at spaces, its whole output as the body.
    pub(super) async fn run(&self, path: &PodPath, container: &str, query: Option<&str>) -> Response<Body> {
        let id = match self.running(path, container) {
            Ok(id) => id,
            Err(refused) => return *refused,
        };
        let query = query_pairs(query);
        let line = query.iter().find(|(key, _)| key == "cmd").map_or("", |(_, value)| value.as_str());
        let command: Vec<String> = line.split(' ').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        match self.runtime.exec_sync(&id, &command, RUN).await {
            Ok(output) => {
                let mut body = output.stdout.to_vec();
                body.extend_from_slice(&output.stderr);
                serve::text(StatusCode::OK, body)
            }
            Err(error) => serve::text(StatusCode::INTERNAL_SERVER_ERROR, with_causes(&error)),
        }
    }

    /// Reads all usage on a blocking thread: limit reads can sleep in reclaim.
    async fn usage(&self) -> Result<stats::Usage, Refused> {
        let (tree, view) = (Arc::clone(&self.pod_tree), self.view.clone());
        match tokio::task::spawn_blocking(move || stats::gather(&tree, &view)).await {
            Ok(usage) => Ok(usage),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// `/metrics/resource`.
    pub(super) async fn resource_metrics(&self) -> Response<Body> {
        either(
            self.usage().await.map(|usage| serve::answer(StatusCode::OK, Format::Classic.content_type(), stats::resource_metrics(&usage))),
        )
    }

    /// `/metrics/cadvisor`.
    pub(super) async fn cadvisor_metrics(&self) -> Response<Body> {
        let (tree, view, pause_image) = (Arc::clone(&self.pod_tree), self.view.clone(), self.config.pause_image.clone());
        let work = tokio::task::spawn_blocking(move || {
            let (usage, networks) = (stats::gather(&tree, &view), cadvisor::networks(&tree, &view));
            let parent = |uid: &str| {
                let seen = view.get(&uid.into());
                let qos = seen.and_then(|seen| cgroup::QosClass::ALL.into_iter().find(|qos| qos.as_str() == seen.pod.status.qos_class));
                qos.and_then(|qos| tree.cgroup_parent(uid, qos).ok()).unwrap_or_default()
            };
            cadvisor::render(&usage, &networks, &tree.kubepods(), &pause_image, parent)
        });
        match work.await {
            Ok(text) => serve::answer(StatusCode::OK, Format::Classic.content_type(), text),
            Err(error) => serve::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// `/stats/summary`.
    pub(super) async fn summary(&self, query: Option<&str>) -> Response<Body> {
        let only = query_pairs(query).iter().any(|(key, value)| key == "only_cpu_and_memory" && value == "true");
        either(
            self.usage()
                .await
                .map(|usage| serve::json(&stats::summary(&usage, &self.config.node_name, &self.config.root_dir, &self.rates, only))),
        )
    }

    /// `/configz`: the part of a KubeletConfiguration that has a meaning here.
    pub(super) fn configz(&self) -> Response<Body> {
        let config = &self.config;
        let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
        serve::json(&json!({"kubeletconfig": {
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "enableServer": true,
            "podLogsDir": config.pod_logs_dir, "address": config.kubelet_address.to_string(), "port": config.kubelet_port,
            "authentication": {"x509": {}, "webhook": {"enabled": true, "cacheTTL": "2m0s"}, "anonymous": {"enabled": false}},
            "authorization": {"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"}},
            "healthzPort": config.healthz_address.map_or(0, |address| address.port()),
            "clusterDomain": config.cluster_domain, "clusterDNS": dns,
            "streamingConnectionIdleTimeout": format!("{}s", config.streaming_idle_timeout_seconds),
            "maxPods": config.max_pods, "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
            "resolvConf": config.resolv_conf, "cgroupRoot": config.cgroup_root, "cgroupsPerQOS": true,
            "serializeImagePulls": config.serialize_image_pulls,
            "containerLogMaxSize": config.container_log_max_size.to_string(),
            "containerLogMaxFiles": config.container_log_max_files,
            "evictionHard": config.eviction_hard, "systemReserved": config.system_reserved, "kubeReserved": config.kube_reserved,
            "enforceNodeAllocatable": ["pods"],
        }}))
    }
}

fn wanted(query: &[(String, String)]) -> Result<runtime::Streams, Refused> {
    match Wanted::parse(query) {
        Some(wanted) => Ok(runtime::Streams { stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr, tty: wanted.tty }),
        None => refuse(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr".to_owned()),
    }
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words.push_str(": ");
        words.push_str(&inner.to_string());
        cause = inner.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_said_as_a_kubelet_says_it() {
        let cases = [
            ("", "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ("PodInitializing", "container \"c\" in pod \"p\" is waiting to start: PodInitializing"),
            ("ErrImagePull", "container \"c\" in pod \"p\" is waiting to start: image can't be pulled"),
            ("ImagePullBackOff", "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image"),
        ];
        for (reason, words) in cases {
            assert_eq!(waiting_words("c", "p", reason), words);
        }
    }
}
