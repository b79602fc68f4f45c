//! `edge-agent leave`.

use crate::config::Config;

/// Gives the pods away, stops, and removes what this instance made.
pub async fn run(config: Config, purge: bool) -> anyhow::Result<()> {
    let _ = (config, purge);
    anyhow::bail!("leave does not exist yet")
}
