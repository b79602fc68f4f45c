//! Command line types; parsing does no work.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A Kubernetes node agent for small boards that joins K3s clusters.
#[derive(Debug, Parser)]
#[command(name = "edge-agent", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the machine, verify server and token, write the configuration and enable the service
    Join(Join),
    /// Run the agent; what the service runs
    Run(Run),
    /// Check what this machine offers, one line a check with its remedy
    Preflight(Preflight),
    /// Show node, links, pods and pressure, also while the server is away
    Status(Status),
    /// Show the last decision about a pod, what it was based on and when it is tried again
    Why(Why),
    /// Deal with the governor that keeps pods from starving the node
    Governor(Governor),
    /// Give the node's pods away, stop, and remove what this instance made
    Leave(Leave),
}

/// Which instance.
#[derive(Debug, Clone, Args)]
pub struct Instance {
    /// Configuration file [default: /etc/edge-agent/config.yaml]
    #[arg(long, short = 'c', value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Join {
    /// Server to join, https://SERVER:6443
    #[arg(value_name = "URL")]
    pub server: String,
    /// Token of the server; better in EDGE_TOKEN or a file, where `ps` does not show it
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    pub token: Option<String>,
    /// File with the token of the server
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Name of the node [default: host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Label of the node, may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub node_label: Vec<String>,
    /// Taint of the node at registration, may be repeated
    #[arg(long, value_name = "KEY=VALUE:EFFECT")]
    pub node_taint: Vec<String>,
    /// Address of the node [default: that of the default route]
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Vec<String>,
    /// Where identity, assignments and images are kept [default: /var/lib/edge-agent]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Repair what preflight can repair without asking, and reboot if that needs it; the join then finishes by itself
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub instance: Instance,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub instance: Instance,
    /// Log every step
    #[arg(long)]
    pub debug: bool,
}

#[derive(Debug, Args)]
pub struct Preflight {
    #[command(flatten)]
    pub instance: Instance,
    /// Repair what can be repaired safely; files are kept beside themselves, changes are shown, nothing reboots
    #[arg(long)]
    pub fix: bool,
    /// With --fix: agree to the repairs that are asked about
    #[arg(long, requires = "fix")]
    pub yes: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub instance: Instance,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Show it again and again: as a board on a terminal, as lines elsewhere
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct Why {
    /// NAME or NAMESPACE/NAME
    #[arg(value_name = "POD")]
    pub pod: String,
    #[command(flatten)]
    pub instance: Instance,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Governor {
    #[command(subcommand)]
    pub command: GovernorCommand,
}

#[derive(Debug, Subcommand)]
pub enum GovernorCommand {
    /// Undo every brake and freeze now, with or without a running agent
    Release(Release),
}

#[derive(Debug, Args)]
pub struct Release {
    #[command(flatten)]
    pub instance: Instance,
}

#[derive(Debug, Args)]
pub struct Leave {
    #[command(flatten)]
    pub instance: Instance,
    /// Also remove data, images and configuration
    #[arg(long)]
    pub purge: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
