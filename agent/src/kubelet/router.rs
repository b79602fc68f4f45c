//! Path and method → what is wanted. Pure.

use hyper::Method;

/// A pod as named in a path; with its UID when the path has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPath {
    pub namespace: String,
    pub name: String,
    pub uid: Option<String>,
}

/// One thing the kubelet port does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz` and its checks by name.
    Health,
    Pods,
    RunningPods,
    Metrics,
    MetricsResource,
    MetricsProbes,
    MetricsCadvisor,
    StatsSummary,
    Configz,
    ContainerLogs {
        pod: PodPath,
        container: String,
    },
    Exec {
        pod: PodPath,
        container: String,
    },
    Attach {
        pod: PodPath,
        container: String,
    },
    PortForward {
        pod: PodPath,
    },
    /// `/run`: a command, its output as plain body.
    Run {
        pod: PodPath,
        container: String,
    },
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// 404
    NoSuchPath,
    /// 405, the path exists for other methods
    WrongMethod,
}

/// Finds the route of a request.
pub fn route(method: &Method, path: &str) -> Result<Route, Miss> {
    let parts: Vec<&str> = path.trim_start_matches('/').trim_end_matches('/').split('/').collect();
    let (route, methods): (Route, &[Method]) = match parts.as_slice() {
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop" | "lease"] => (Route::Health, &[Method::GET]),
        ["pods"] => (Route::Pods, &[Method::GET]),
        ["runningpods"] => (Route::RunningPods, &[Method::GET]),
        ["metrics"] => (Route::Metrics, &[Method::GET]),
        ["metrics", "resource"] => (Route::MetricsResource, &[Method::GET]),
        ["metrics", "cadvisor"] => (Route::MetricsCadvisor, &[Method::GET]),
        ["metrics", "probes"] => (Route::MetricsProbes, &[Method::GET]),
        ["stats", "summary"] => (Route::StatsSummary, &[Method::GET, Method::POST]),
        ["configz"] => (Route::Configz, &[Method::GET]),
        ["containerLogs", namespace, name, container] => {
            let pod = pod(namespace, name, None);
            (Route::ContainerLogs { pod, container: (*container).to_owned() }, &[Method::GET])
        }
        [verb @ ("exec" | "attach" | "run"), namespace, name, rest @ ..] => {
            let (uid, container) = match rest {
                [container] => (None, container),
                [uid, container] => (Some(*uid), container),
                _ => return Err(Miss::NoSuchPath),
            };
            let (pod, container) = (pod(namespace, name, uid), (*container).to_owned());
            match *verb {
                "exec" => (Route::Exec { pod, container }, &[Method::GET, Method::POST]),
                "attach" => (Route::Attach { pod, container }, &[Method::GET, Method::POST]),
                _ => (Route::Run { pod, container }, &[Method::POST]),
            }
        }
        ["portForward", namespace, name] => (Route::PortForward { pod: pod(namespace, name, None) }, &[Method::GET, Method::POST]),
        ["portForward", namespace, name, uid] => {
            (Route::PortForward { pod: pod(namespace, name, Some(uid)) }, &[Method::GET, Method::POST])
        }
        _ => return Err(Miss::NoSuchPath),
    };
    if methods.contains(method) { Ok(route) } else { Err(Miss::WrongMethod) }
}

fn pod(namespace: &str, name: &str, uid: Option<&str>) -> PodPath {
    PodPath { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_a_kubelet_leads_them() {
        let named = |uid: Option<&str>| pod("ns", "p", uid);
        let c = || "c".to_owned();
        let found = [
            (Method::GET, "/healthz", Route::Health),
            (Method::GET, "/healthz/syncloop", Route::Health),
            (Method::GET, "/pods", Route::Pods),
            (Method::GET, "/pods/", Route::Pods),
            (Method::GET, "/runningpods/", Route::RunningPods),
            (Method::GET, "/metrics/resource", Route::MetricsResource),
            (Method::POST, "/stats/summary", Route::StatsSummary),
            (Method::GET, "/containerLogs/ns/p/c", Route::ContainerLogs { pod: named(None), container: c() }),
            (Method::POST, "/exec/ns/p/c", Route::Exec { pod: named(None), container: c() }),
            (Method::GET, "/exec/ns/p/u-1/c", Route::Exec { pod: named(Some("u-1")), container: c() }),
            (Method::POST, "/attach/ns/p/c", Route::Attach { pod: named(None), container: c() }),
            (Method::POST, "/portForward/ns/p", Route::PortForward { pod: named(None) }),
            (Method::POST, "/portForward/ns/p/u-1", Route::PortForward { pod: named(Some("u-1")) }),
            (Method::POST, "/run/ns/p/c", Route::Run { pod: named(None), container: c() }),
        ];
        for (method, path, wanted) in found {
            assert_eq!(route(&method, path), Ok(wanted), "{method} {path}");
        }
        let missed = [
            (Method::GET, "/", Miss::NoSuchPath),
            (Method::GET, "/foo", Miss::NoSuchPath),
            (Method::GET, "/containerLogs/ns/p", Miss::NoSuchPath),
            (Method::GET, "/healthz/other", Miss::NoSuchPath),
            (Method::POST, "/exec/ns/p/u/c/x", Miss::NoSuchPath),
            (Method::POST, "/pods", Miss::WrongMethod),
            (Method::DELETE, "/exec/ns/p/c", Miss::WrongMethod),
            (Method::GET, "/run/ns/p/c", Miss::WrongMethod),
        ];
        for (method, path, wanted) in missed {
            assert_eq!(route(&method, path), Err(wanted), "{method} {path}");
        }
    }
}
