//! The wiring: one read from top to bottom is the tour of the agent.

mod cluster;
mod governor_setup;
mod machine_setup;
mod runtime_setup;
mod server_list;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tunnel::allow::{Allow, EgressMode, Rules};
use tunnel::link::{LinkState, LinksOptions, TlsConnect};
use tunnel::traffic::Proof;

use crate::api::client::Settings;
use crate::api::servers::Servers;
use crate::api::{Client, node::Node};
use crate::assignments::{self, Assignments};
use crate::config::Config;
use crate::control::{self, Live};
use crate::events::Recorder;
use crate::governor::{self, Governor, NodeWord};
use crate::heartbeat::Heartbeat;
use crate::metrics::{self, Metrics, Wire};
use crate::objects::{Known, Objects};
use crate::pod::{self, NodeFacts, Workers};
use crate::{images_preload, kubelet, ledger, network_sync, node, preflight, qos, reboot, registries, status_writer};

use cluster::Cluster;
pub(crate) use runtime_setup::{SYSTEM_CNI, choose as choose_runtime, managed_options};

/// Runs the agent until `stop` becomes true. Pods outlive it.
pub async fn run(mut config: Config, stop: watch::Receiver<bool>, started: Instant) -> anyhow::Result<()> {
    // The machine: reservation enforced before anything else can grow.
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    let machine = machine_setup::prepare(&mut config, &metrics)?;

    // The runtime starts while the cluster is asked who we are.
    runtime_setup::choose(&mut config).await;
    let mut stopped = stop.clone();
    let (runtime, cluster) = tokio::select! {
        both = async { tokio::try_join!(runtime_setup::start(&config, &machine), Cluster::join(&config)) } => both?,
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    config.cni_conf_dir.clone_from(&runtime.cni_conf_dir);
    cluster.complete(&mut config);
    let config = Arc::new(config);

    // Whom we talk to, and as whom.
    let wire = Wire::default();
    let client = Client::new(
        Servers::new(&cluster.configured, cluster.servers.subscribe(), cluster.node_tls.subscribe()).counted(Arc::clone(&wire.api)),
        Settings { keep_alive: Some(config.liveness.api_ping), ..Settings::default() },
    );
    let controller = Client::new(
        Servers::new(&cluster.configured, cluster.servers.subscribe(), cluster.controller_tls.subscribe())
            .counted(Arc::clone(&wire.controller)),
        Settings { keep_alive: Some(config.liveness.api_ping), ..Settings::default() },
    );

    // What is to run: from the ledger at once, from the server as soon as it answers.
    let ledger_path = ledger::path(&config.data_dir);
    let (remembered, known) = match ledger::load(&ledger_path, &config.node_name) {
        Some((pods, known)) => {
            tracing::info!(pods = pods.len(), "assignments remembered");
            (Assignments::Remembered(Arc::new(pods)), known)
        }
        None => (Assignments::Unknown, Known::default()),
    };
    let assignments = watch::Sender::new(remembered);

    // Who works on it.
    let (recorder, events) = Recorder::new(&config.node_name);
    let objects = Objects::new(client.clone(), known);
    let status = status_writer::Handle::default();
    let (node_out, node_object, node_facts, ready) = node_channels(&machine);
    let orders = watch::Sender::new(Arc::default());
    let workers = Workers::new(pod::Deps {
        config: Arc::clone(&config),
        runtime: runtime.client.clone(),
        pod_tree: Arc::clone(&machine.pod_tree),
        objects: objects.clone(),
        recorder: recorder.clone(),
        status: status.clone(),
        metrics: Arc::clone(&metrics),
        logins: Arc::new(registries::Logins::load(config.registries_file.as_deref())?),
        node: node_facts,
        orders: orders.subscribe(),
    });
    let view = workers.view();

    // Listeners: bound before anybody is told about them.
    let kubelet = kubelet::Server::bind(kubelet::Deps {
        config: Arc::clone(&config),
        api: client.clone(),
        runtime: runtime.client.clone(),
        view: view.clone(),
        pod_tree: Arc::clone(&machine.pod_tree),
        metrics: Arc::clone(&metrics),
        credentials: cluster.credentials.subscribe(),
    })
    .await?;
    let kubelet_addr = kubelet.addr;
    let metrics_listener = match config.metrics_address {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("metrics cannot listen on {address}; choose another with metrics-address"))?)
        }
        None => None,
    };
    let control_socket = control::bind(&config.run_dir).with_context(|| format!("control socket in {}", config.run_dir.display()))?;

    // The sacred thread: lease and tunnel links.
    let link_states = watch::Sender::new(BTreeMap::<tunnel::ServerAddr, LinkState>::new());
    let proofs = watch::Sender::new(BTreeMap::new());
    metrics.collect(Box::new(metrics::Links { states: link_states.subscribe(), proofs: proofs.subscribe(), wire: wire.clone() }));
    tracing::info!(liveness = %config.liveness, "liveness");
    let node_uid = watch::Sender::new(String::new());
    let heartbeat = Heartbeat {
        node_name: config.node_name.clone(),
        node_uid: node_uid.subscribe(),
        configured: cluster.configured.clone(),
        servers: cluster.servers.subscribe(),
        tls: cluster.node_tls.subscribe(),
        links: LinksOptions {
            connect: Arc::new(TlsConnect { tls: cluster.tunnel_tls.subscribe(), traffic: Arc::clone(&wire.tunnel) }),
            dial: Arc::new(kubelet.door.clone()),
            allow: Allow::fixed(Rules {
                mode: EgressMode::parse(&cluster.identity.config.egress_selector_mode),
                kubelet_port: kubelet_addr.port(),
                node_ips: cluster.node_ips.clone(),
                cluster_cidrs: cluster.identity.config.cluster_ip_ranges.clone(),
                ..Rules::default()
            }),
            states: link_states.clone(),
            proofs: proofs.clone(),
            stop: stop.clone(),
            local: tokio::runtime::Handle::current(),
            timing: config.liveness.timing(),
        },
        metrics: Arc::clone(&metrics),
        traffic: Arc::clone(&wire.lease),
        lease_every: config.liveness.lease_every,
        stop: stop.clone(),
    };
    let heartbeat = heartbeat.start()?;

    // What waited for this boot, or waits for the next one.
    if let Some(outcome) = reboot::settle(&config.data_dir) {
        governor_setup::tell_reboot(&outcome, &machine.conditions, &recorder);
    }

    // The other sacred thread: what pods may not do to this machine.
    let word = watch::Sender::new(NodeWord::default());
    crate::task::spawn(governor_setup::follow(word.subscribe(), machine.conditions.clone()));
    let governor = Governor::start(governor::Deps {
        tree: (*machine.pod_tree).clone(),
        scopes: machine.scopes.clone(),
        settings: governor_setup::settings(&machine, &config.data_dir),
        wish: config.governor,
        may_act: machine.reservations.mode().may_act(),
        disk: machine.disk.as_ref().map(|limits| format!("{}:{}", limits.disk.major, limits.disk.minor)),
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        info: governor_setup::info(&machine),
        features: machine.features,
        metrics: Arc::clone(&metrics),
        view: view.clone(),
        recorder: recorder.clone(),
        orders,
        word,
    })?;

    // The Node, and the network it is given.
    let look = Arc::new(Notify::new());
    let network = network_sync::Cluster {
        pod_networks: cluster.identity.config.cluster_ip_ranges.clone(),
        backend: cluster.identity.config.flannel_backend.clone(),
        masquerade_ipv6: cluster.identity.config.flannel_ipv6_masq,
    };
    let ends = network_sync::ends(&network, &config, &cluster.node_ips);
    let node = node::run(
        node::Deps {
            config: Arc::clone(&config),
            client: client.clone(),
            runtime: runtime.client.clone(),
            recorder: recorder.clone(),
            metrics: Arc::clone(&metrics),
            machine: machine.machine.clone(),
            capacity: machine.capacity.clone(),
            allocatable: machine.allocatable.clone(),
            node_ips: cluster.node_ips.clone(),
            disable_ccm: cluster.identity.config.disable_ccm,
            network_annotations: network_sync::annotations(&network, &cluster.node_ips, &ends),
            kubelet_port: kubelet_addr.port(),
            look: Arc::clone(&look),
            extra: machine.conditions.subscribe(),
            started,
        },
        node_out,
    );
    let network = network_sync::run(network_sync::Deps {
        config: Arc::clone(&config),
        cluster: network,
        node_ips: cluster.node_ips.clone(),
        ends,
        node: node_object.clone(),
        controller: controller.clone(),
        look,
    });

    // Who may ask, locally.
    let live = Live {
        node: config.node_name.clone(),
        view,
        metrics: Arc::clone(&metrics),
        ready,
        links: Box::new({
            let states = link_states.subscribe();
            let proofs = proofs.subscribe();
            move || links(&states.borrow(), &proofs.borrow())
        }),
        liveness: config.liveness.to_string(),
        runtime: format!("containerd at {}", runtime.client.socket().display()),
        governor: governor_setup::control(&governor),
        reservations: Box::new({
            let (reservations, pod_tree) = (Arc::clone(&machine.reservations), Arc::clone(&machine.pod_tree));
            move || control::reservations(&reservations.report(), pod_tree.hierarchy())
        }),
        pod_tree: Arc::clone(&machine.pod_tree),
    };

    // Everything runs. Pods wait for the preloaded images, nobody else does.
    crate::task::spawn(Arc::clone(&machine.reservations).run());
    crate::task::spawn(node);
    crate::task::spawn(network);
    crate::task::spawn(follow_uid(node_object, node_uid));
    crate::task::spawn(qos::run(Arc::clone(&machine.pod_tree), (&machine.reservation).into(), assignments.subscribe()));
    let clients = vec![client.clone(), controller.clone()];
    crate::task::spawn(follow_links(link_states.subscribe(), Some(Arc::clone(&metrics)), clients.clone()));
    crate::task::spawn(events.run(client.clone()));
    crate::task::spawn(objects.clone().run());
    crate::task::spawn(status.run(client.clone(), assignments.subscribe(), Arc::clone(&metrics)));
    crate::task::spawn(ledger::run(ledger_path, config.node_name.clone(), assignments.subscribe(), objects));
    crate::task::spawn(assignments::run(client, config.node_name.clone(), assignments.clone()));
    crate::task::spawn(kubelet.run(stop.clone()));
    crate::task::spawn(control::serve(control_socket, Arc::new(live), stop.clone()));
    let shown = Arc::clone(&metrics);
    if let Some(listener) = metrics_listener {
        crate::task::spawn(metrics::serve(listener, metrics, stop.clone()));
    }
    crate::task::spawn(server_list::follow(cluster.server_list(&config, controller), clients.clone()));
    crate::task::spawn(cluster.keep(Arc::clone(&config), link_states.subscribe(), clients));
    crate::task::spawn(tell_checks(Arc::clone(&config), Arc::clone(&shown)));
    let imported = config.data_dir.join("agent/imported-images");
    let working = async {
        images_preload::run(&runtime.client, &config.image_dirs, &imported, &config.pause_image).await;
        workers.run(assignments.subscribe(), stop.clone()).await;
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(node = %config.node_name, kubelet = %kubelet_addr, "agent runs");
    tokio::select! {
        () = working => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    drop(runtime.keeper);
    let _ = tokio::task::spawn_blocking(move || governor.stop()).await;
    // The heartbeat sees the same flag; it has nothing to finish.
    let _ = tokio::task::spawn_blocking(move || heartbeat.join()).await;
    Ok(())
}

type NodeChannels = (node::Outputs, watch::Receiver<Option<Arc<Node>>>, watch::Receiver<Arc<NodeFacts>>, watch::Receiver<Option<bool>>);

fn node_channels(machine: &machine_setup::Prepared) -> NodeChannels {
    let facts = NodeFacts { capacity: machine.capacity.clone(), allocatable: machine.allocatable.clone(), ..NodeFacts::default() };
    let (node, object) = watch::channel(None);
    let (facts, facts_seen) = watch::channel(Arc::new(facts));
    let (ready, ready_seen) = watch::channel(None);
    (node::Outputs { node, facts, ready }, object, facts_seen, ready_seen)
}

/// The checks that cost next to nothing, once, for the metrics.
async fn tell_checks(config: Arc<Config>, metrics: Arc<Metrics>) {
    let looked = tokio::task::spawn_blocking(move || preflight::cheap(&config)).await;
    for (check, level) in looked.unwrap_or_default() {
        metrics.preflight(check, level.name());
    }
}

/// The heartbeat gets the Node's UID through a channel of its own.
async fn follow_uid(mut node: watch::Receiver<Option<Arc<Node>>>, uid: watch::Sender<String>) {
    loop {
        let now = node.borrow_and_update().as_ref().map(|node| node.metadata.uid.clone());
        if let Some(now) = now {
            uid.send_if_modified(|current| {
                let changed = *current != now;
                if changed {
                    *current = now;
                }
                changed
            });
        }
        if node.changed().await.is_err() {
            return;
        }
    }
}

/// The state of the links is the health of the servers: it moves the API connections, too.
pub(crate) async fn follow_links(
    mut states: watch::Receiver<BTreeMap<tunnel::ServerAddr, LinkState>>,
    metrics: Option<Arc<Metrics>>,
    clients: Vec<Client>,
) {
    let mut before: BTreeMap<tunnel::ServerAddr, Option<bool>> = BTreeMap::new();
    loop {
        let now: BTreeMap<_, _> = states.borrow_and_update().iter().map(|(server, state)| (server.clone(), state.health())).collect();
        if let Some(metrics) = &metrics {
            metrics.tunnel_links(now.values().filter(|health| **health == Some(true)).count(), now.len());
        }
        for (server, health) in &now {
            let Some(ok) = *health else { continue };
            if before.get(server) == Some(&Some(ok)) {
                continue;
            }
            if let Some(metrics) = metrics.as_ref().filter(|_| ok) {
                metrics.tunnel_connected();
            }
            for client in &clients {
                client.health(server, ok).await;
            }
        }
        // A link that is dialling again has not forgotten how it ended.
        for (server, health) in now {
            if health.is_some() {
                before.insert(server, health);
            }
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

fn links(states: &BTreeMap<tunnel::ServerAddr, LinkState>, proofs: &BTreeMap<tunnel::ServerAddr, Arc<Proof>>) -> Vec<control::Link> {
    let say = |state: &LinkState| match state {
        LinkState::Connecting => "connecting".to_owned(),
        LinkState::Connected => "connected".to_owned(),
        LinkState::Waiting { error, retry_in } => format!("{error}; next attempt in {} s", retry_in.as_secs()),
        LinkState::Stopped => "stopped".to_owned(),
    };
    let age = |server| proofs.get(server).and_then(|proof| proof.age(Instant::now())).map(|age| age.as_secs());
    let line = |(server, state)| control::Link {
        server: tunnel::ServerAddr::to_string(server),
        state: say(state),
        last_proof_seconds: age(server),
    };
    states.iter().map(line).collect()
}
