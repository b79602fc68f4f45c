//! 28 to 31: the board itself.

use super::super::fix::Fix;
use super::{Verdict, is_small, pass, skipped, warn};
use crate::preflight::Facts;

pub(super) fn gpu_memory(facts: &Facts) -> Verdict {
    let board = &facts.board;
    let found = match (board.gpu_mib, board.cma_mib) {
        (None, None | Some(0)) => return skipped("nothing here says how much there is"),
        (None, Some(cma)) => format!("{cma} MiB for devices (CmaTotal)"),
        (Some(gpu), _) => format!("{gpu} MiB for graphics"),
    };
    let much = board.gpu_mib.is_some_and(|gpu| gpu > 16);
    if !(much && is_small(facts) && board.headless) {
        return pass(found);
    }
    let remedy = "No screen is attached: set gpu_mem=16 in config.txt and reboot (preflight --fix asks)";
    let verdict = warn(found, remedy).after_reboot();
    match &facts.boot.firmware {
        Some(firmware) if firmware.tryboot.is_none() && !firmware.read_only => {
            verdict.fixed_by([Fix::FirmwareSetting("gpu_mem", "16")]).asking()
        }
        Some(_) | None => verdict,
    }
}

pub(super) fn kernel(facts: &Facts) -> Verdict {
    let boot = &facts.boot;
    let found = format!("{} {}, pages of {} KiB", boot.release, boot.machine, boot.page_size / 1024);
    if !matches!(boot.machine.as_str(), "aarch64" | "x86_64" | "riscv64") {
        return warn(found, "Prefer a 64-bit kernel: arm_64bit=1 in config.txt, or a 64-bit image").after_reboot();
    }
    if boot.page_size > 4096 {
        return pass(format!("{found} (kernel=kernel8.img in config.txt selects the kernel with 4 KiB pages, which needs less memory)"));
    }
    pass(found)
}

pub(super) fn power(facts: &Facts) -> Verdict {
    const CABLE: &str = "Use the supply made for this board and a short, thick cable";
    const NOW: u32 = 1;
    const SINCE_BOOT: u32 = 1 << 16;
    let board = &facts.board;
    let bits = board.throttled.unwrap_or(0);
    match (board.undervoltage, board.throttled) {
        (None, None) => skipped("this board does not say"),
        (Some(true), _) => warn("the voltage is too low now", CABLE),
        _ if bits & NOW != 0 => warn("the voltage is too low now", CABLE),
        _ if bits & SINCE_BOOT != 0 => warn("the voltage was too low since boot", CABLE),
        _ => pass("no low voltage seen"),
    }
}

pub(super) fn temperature(facts: &Facts) -> Verdict {
    const HOT: i64 = 75;
    match facts.board.celsius {
        None => skipped("no sensor"),
        Some(celsius) if celsius > HOT => warn(format!("{celsius} degrees"), "Cool it: above 80 degrees the board slows down"),
        Some(celsius) => pass(format!("{celsius} degrees")),
    }
}
