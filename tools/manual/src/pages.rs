//! The text of the manual pages.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::example;

/// A section of the program's own page that a command line cannot tell.
pub struct Note {
    pub title: &'static str,
    /// Term and text.
    pub entries: &'static [(&'static str, &'static str)],
}

pub const AGENT: &[Note] = &[
    Note {
        title: "EXIT STATUS",
        entries: &[
            ("0", "Done; for preflight: every check passed."),
            ("1", "It failed, and trying again may help; for preflight: there are warnings."),
            ("2", "The command line is wrong; for preflight: the machine cannot be a node yet, or looking or repairing failed."),
            ("78", "The configuration or the token is wrong. The service is not started again until it is changed."),
        ],
    },
    Note {
        title: "FILES",
        entries: &[
            ("/etc/edge-agent/config.yaml", "The configuration, see edge-agent-config(5)."),
            ("/etc/edge-agent/config.yaml.d/*.yaml", "Read after it, in the order of their names."),
            ("/var/lib/edge-agent", "Identity, last assignments, images to load (agent/images)."),
            ("/run/edge-agent/agent.sock", "Where status and why ask the running agent. Root only."),
            ("/etc/default/edge-agent", "Environment of the service, if it exists."),
        ],
    },
    Note { title: "ENVIRONMENT", entries: &[("EDGE_TOKEN", "The server's token for join, where neither ps nor a file shows it.")] },
    Note { title: "SEE ALSO", entries: &[("edge-agent-config(5), edge-server(8), systemd.resource-control(5)", "")] },
];

pub const SERVER: &[Note] = &[
    Note {
        title: "FILES",
        entries: &[
            ("/var/lib/edge-server/kubeconfig.yaml", "For kubectl, with the rights of an administrator."),
            ("/var/lib/edge-server/token", "What edge-agent join wants."),
            ("/etc/default/edge-server", "EDGE_SERVER_OPTIONS in it is added to the service's command line."),
        ],
    },
    Note { title: "SEE ALSO", entries: &[("edge-agent(8), kubectl(1)", "")] },
];

/// Name and text of the page of `command` and of each visible subcommand at any depth; `notes` end the first.
pub fn of(command: &Command, notes: &[Note]) -> Vec<(String, String)> {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let name = command.get_name().to_owned();
    collect(command, &name, &mut pages);
    if let Some((_, text)) = pages.first_mut() {
        text.push_str(&rendered(notes));
    }
    pages
}

fn collect(command: Command, name: &str, pages: &mut Vec<(String, String)>) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        collect(sub.clone(), &format!("{name}-{}", sub.get_name()), pages);
    }
    let man = Man::new(command).title(name.to_owned()).section("8").manual("System administration");
    let mut text = Vec::new();
    if man.render(&mut text).is_ok() {
        pages.insert(0, (name.to_owned(), String::from_utf8_lossy(&text).into_owned()));
    }
}

fn rendered(notes: &[Note]) -> String {
    let mut roff = Roff::new();
    for note in notes {
        roff.control("SH", [note.title]);
        for (term, text) in note.entries {
            if text.is_empty() {
                roff.text([roman(*term)]);
            } else {
                roff.control("TP", []).text([bold(*term)]).text([roman(*text)]);
            }
        }
    }
    roff.render()
}

/// `edge-agent-config(5)`, from the example configuration.
pub fn configuration() -> String {
    let mut roff = Roff::new();
    roff.control("TH", ["edge-agent-config", "5", "", concat!("edge-agent ", env!("CARGO_PKG_VERSION")), "File formats"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("edge-agent-config - configuration of edge-agent")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "/etc/edge-agent/config.yaml is YAML with the keys of the k3s agent and some of our own. Files in config.yaml.d beside it are \
         read after it in the order of their names; a key with a plus sign at its end, as in node-label+, adds to a list. An unknown key is \
         an error that names the nearest known one; a key that would change what pods see and is not implemented is refused.",
    )]);
    roff.text([roman("Shown with each key is its default or an example.")]);
    for section in example::sections(example::TEXT) {
        roff.control("SH", [section.title.to_uppercase().as_str()]);
        for key in section.keys {
            roff.control("TP", []);
            let mark = if key.nested { "=" } else { ": " };
            let value = key.values.join(", ");
            roff.text(if key.values.is_empty() { vec![bold(key.name)] } else { vec![bold(key.name), roman(mark), italic(value)] });
            roff.text([roman(key.about)]);
        }
    }
    roff.control("SH", ["EXAMPLE"]);
    roff.text([roman("The whole of it stands in /usr/share/doc/edge-agent/examples/config.yaml.")]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("edge-agent(8)")]);
    roff.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_page_has_a_paragraph_a_key() {
        let page = configuration();
        assert!(page.starts_with(".ie"), "the apostrophe is defined first: {page}");
        let paragraphs = page.lines().filter(|line| line.starts_with(".TP")).count();
        let keys: usize = example::sections(example::TEXT).iter().map(|section| section.keys.len()).sum();
        assert_eq!(paragraphs, keys);
        assert!(page.contains(r"\fBmax\-pods\fR=\fI30\fR"), "{page}");
    }

    #[test]
    fn notes_end_the_page_of_the_program_alone() {
        let command = Command::new("outer").subcommand(Command::new("inner")).subcommand(Command::new("secret").hide(true));
        let notes = [Note { title: "EXIT STATUS", entries: &[("0", "Fine.")] }];
        let pages = of(&command, &notes);
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["outer", "outer-inner"]);
        assert!(pages[0].1.contains("EXIT STATUS") && pages[0].1.contains("Fine."), "{}", pages[0].1);
        assert!(!pages[1].1.contains("EXIT STATUS"), "{}", pages[1].1);
    }
}
