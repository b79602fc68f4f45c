//! Every kubectl command a user of stateless applications knows, with released kubectl binaries.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::system::cluster::{Cluster, Options};
use crate::system::kubectl::Kubectl;
use crate::system::steps::{STEPS, Tried};
use crate::system::{run, skip};

#[test]
fn commands_do_what_a_user_expects() {
    run("kubectl", |machine| {
        for variable in ["KUBECTL_OLD", "KUBECTL_NEW"] {
            if std::env::var_os(variable).is_none() {
                skip("kubectl", &format!("{variable} is not set, that release is not tried"));
            }
        }
        let cluster = Cluster::start(machine, &Options::default());
        let mut failed = Vec::new();
        for (version, binary) in &machine.kubectls {
            let home = cluster.dir.join(format!("home-{version}"));
            std::fs::create_dir_all(&home).expect("home is made");
            let all = Kubectl::new(binary, &cluster.dir.join("server/kubeconfig.yaml"), &home);
            let namespace = format!("user-{}", version.replace('.', "-"));
            all.ok(&["create", "namespace", &namespace]);
            let tried = Tried { cluster: &cluster, k: all.within(&namespace), namespace };
            for (name, step) in STEPS {
                match catch_unwind(AssertUnwindSafe(|| step(&tried))) {
                    Ok(()) => println!("kubectl {version}: {name} ok"),
                    Err(_) => failed.push(format!("kubectl {version}: {name}")),
                }
            }
        }
        assert!(failed.is_empty(), "failed: {failed:#?}");
    });
}
