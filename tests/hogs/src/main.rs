//! `hog`: one static program with every way a workload can starve its node, and a well-behaved one to see who suffers.
//! It needs nothing but the kernel, so that it runs in an image of its own and on any board.
//!
//! What a kind reached is printed as one line of JSON each second and at the end (see [`report`]). A hog that the kernel refuses
//! something (EAGAIN, ENOMEM, ENOSPC, EMFILE) counts that and tries on until its time is over.
mod arguments;
mod kinds;
mod machine;
mod raw;
mod report;

use std::process::ExitCode;

use arguments::{Arguments, Asked};

fn main() -> ExitCode {
    match arguments::parse(std::env::args().skip(1)) {
        Ok(Asked::Help) => {
            print!("{}", arguments::help());
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(arguments)) => run(arguments),
        Err(error) => {
            eprintln!("hog: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> ExitCode {
    if arguments.child {
        // A storm's parts end with it. Where that cannot be had they end by their own time.
        let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    }
    let (kind, every) = (arguments.kind, arguments.report);
    let run = report::Run::start(arguments);
    run.end_on_sigterm();
    if kind != arguments::Kind::Sampler {
        run.report_each(every);
    }
    let ended = kinds::run(&run);
    run.print_last();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hog: {error}");
            ExitCode::FAILURE
        }
    }
}
