//! Containers that end at once: no end is missed, however it falls between the start and the first look.

use std::time::Duration;

use crate::system::cluster::{Cluster, Options};
use crate::system::{run, wait_for};

#[test]
fn no_quick_end_is_missed() {
    run("no_quick_end_is_missed", |machine| {
        let cluster = Cluster::start(machine, &Options { nodes: 1, config: "debug: true\n" });
        let k = &cluster.kubectl;
        let manifest: String = (0..40)
            .map(|number| {
                format!(
                    "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: quick-{number}}}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  \
                     containers: [{{name: c, image: 'busybox:1.36', command: [sh, -c, 'usleep {}']}}]\n",
                    number * 2500
                )
            })
            .collect();
        k.apply(&manifest);
        wait_for(Duration::from_secs(120), "every pod has ended", || {
            let pods = k.json(&["pods"])?;
            let items = pods["items"].as_array().cloned().unwrap_or_default();
            let open = |pod: &serde_json::Value| pod["status"]["phase"] != "Succeeded";
            let left: Vec<String> = items
                .iter()
                .filter(|pod| open(pod))
                .map(|pod| format!("{}: {}", pod["metadata"]["name"], pod["status"]["phase"]))
                .collect();
            if left.is_empty() && items.len() == 40 { Ok(()) } else { Err(format!("{} left: {left:?}", left.len())) }
        });
    });
}
