use super::*;
use proptest::prelude::*;

const STOCK: &str = "console=serial0,115200 console=tty1 root=PARTUUID=1-02 rootfstype=ext4 fsck.repair=yes rootwait\n";

fn both() -> Edit {
    Edit { add: vec!["cgroup_enable=memory", "psi=1"], remove: vec![Unwanted::MemoryOff, Unwanted::LegacyHierarchy] }
}

#[test]
fn missing_words_go_to_the_end_and_nothing_else_changes() {
    let cases = [
        (STOCK.to_owned(), format!("{} cgroup_enable=memory psi=1\n", STOCK.trim_end())),
        ("root=/dev/a  quiet".to_owned(), "root=/dev/a  quiet cgroup_enable=memory psi=1".to_owned()),
        ("\nroot=/dev/a psi=1 \n\n".to_owned(), "\nroot=/dev/a psi=1 cgroup_enable=memory\n\n".to_owned()),
        ("root=/dev/a cgroup_enable=memory psi=1\r\n".to_owned(), "root=/dev/a cgroup_enable=memory psi=1\r\n".to_owned()),
        (
            "root=/dev/a cgroup_enable=memory cgroup_disable=memory psi=1\n".to_owned(),
            "root=/dev/a cgroup_enable=memory psi=1\n".to_owned(),
        ),
        (
            "cgroup_disable=hugetlb,memory root=/dev/a\n".to_owned(),
            "cgroup_disable=hugetlb root=/dev/a cgroup_enable=memory psi=1\n".to_owned(),
        ),
        ("root=/dev/a systemd.unified_cgroup_hierarchy=0 x\n".to_owned(), "root=/dev/a x cgroup_enable=memory psi=1\n".to_owned()),
        (
            "root=/dev/a systemd.unified_cgroup_hierarchy=1 psi=1 cgroup_enable=memory".to_owned(),
            "root=/dev/a systemd.unified_cgroup_hierarchy=1 psi=1 cgroup_enable=memory".to_owned(),
        ),
        // The last of several counts, so one that is off is outvoted.
        ("root=/dev/a psi=0 cgroup_enable=memory".to_owned(), "root=/dev/a psi=0 cgroup_enable=memory psi=1".to_owned()),
        ("root=/dev/a psi=1 psi=0 cgroup_enable=memory".to_owned(), "root=/dev/a psi=1 psi=0 cgroup_enable=memory psi=1".to_owned()),
        // No list of controllers takes another one back.
        (
            "root=/dev/a cgroup_enable=memory cgroup_enable=cpuset psi=1".to_owned(),
            "root=/dev/a cgroup_enable=memory cgroup_enable=cpuset psi=1".to_owned(),
        ),
    ];
    for (before, after) in cases {
        assert_eq!(edit(&before, &both()).as_deref(), Ok(after.as_str()), "{before:?}");
    }
}

#[test]
fn a_file_that_is_not_one_boot_line_is_refused() {
    let long = format!("root=/dev/a {}", "x".repeat(985));
    let cases = [
        ("", Refusal::Lines(0)),
        ("\n \n", Refusal::Lines(0)),
        ("root=/dev/a\nquiet\n", Refusal::Lines(2)),
        ("console=tty1 quiet\n", Refusal::NoRoot),
        (long.as_str(), Refusal::TooLong(long.len() + " cgroup_enable=memory psi=1".len())),
    ];
    for (text, refusal) in cases {
        assert_eq!(edit(text, &both()), Err(refusal), "{text:?}");
    }
    // A long line that needs nothing is none of our business.
    let complete = format!("root=/dev/a cgroup_enable=memory psi=1 {}", "x".repeat(1000));
    assert_eq!(edit(&complete, &both()), Ok(complete.clone()));
}

fn any_word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,8}(=[a-zA-Z0-9,./-]{0,12})?",
        Just("cgroup_enable=memory".to_owned()),
        Just("psi=1".to_owned()),
        Just("psi=0".to_owned()),
        Just("cgroup_memory=1".to_owned()),
        Just("cgroup_disable=memory".to_owned()),
        Just("cgroup_disable=cpu,memory".to_owned()),
        Just("systemd.unified_cgroup_hierarchy=0".to_owned()),
        Just("systemd.unified_cgroup_hierarchy=1".to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_word_is_lost_none_appears_twice_and_a_second_edit_changes_nothing(
        before in prop::collection::vec(any_word(), 0..12),
        after in prop::collection::vec(any_word(), 0..12),
        gap in " {1,3}",
        end in prop_oneof![Just(""), Just("\n"), Just("\r\n"), Just("\n\n")],
    ) {
        let line: Vec<String> = before.into_iter().chain(["root=/dev/mmcblk0p2".to_owned()]).chain(after).collect();
        let text = format!("{}{end}", line.join(&gap));
        let once = edit(&text, &both()).unwrap();
        prop_assert_eq!(edit(&once, &both()).unwrap(), once.clone());
        prop_assert_eq!(once.lines().filter(|line| !line.trim().is_empty()).count(), 1);
        prop_assert_eq!(once.ends_with('\n'), text.ends_with('\n'));

        let now: Vec<&str> = words(&once).collect();
        let wanted = |word: &&str| !is_unwanted(word, Unwanted::MemoryOff) && !is_unwanted(word, Unwanted::LegacyHierarchy);
        prop_assert!(now.iter().all(wanted));
        // What was there and may stay is there, in its order; what came is ours and at the end.
        let kept: Vec<&str> = words(&text).filter(wanted).collect();
        let without_rest: Vec<&str> = now.iter().copied().filter(|word| *word != "cgroup_disable=cpu").collect();
        prop_assert!(without_rest.starts_with(&kept));
        prop_assert!(without_rest[kept.len()..].iter().all(|word| both().add.contains(word) && !is_last(&kept.join(" "), word)));
        for word in both().add {
            prop_assert!(now.contains(&word));
        }
        prop_assert_eq!(now.iter().rfind(|word| word.starts_with("psi=")), Some(&"psi=1"));
    }
}

fn board(mounts: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec![("proc/self/mountinfo", mounts)];
    all.extend_from_slice(files);
    for (file, text) in all {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

const ROOT: &str = "22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw\n";
const FIRMWARE: &str = "40 22 179:1 / /boot/firmware rw,relatime shared:2 - vfat /dev/mmcblk0p1 rw,fmask=0022\n";
const OLD: &str = "40 22 179:1 / /boot ro,relatime shared:2 - vfat /dev/mmcblk0p1 ro\n";

#[test]
fn the_partition_is_the_mounted_one_and_a_trial_boot_is_seen() {
    let file = [("boot/firmware/cmdline.txt", STOCK), ("boot/cmdline.txt", "root=/dev/old\n")];
    let new = board(&format!("{ROOT}{FIRMWARE}"), &file);
    let found = Firmware::find(new.path()).unwrap();
    assert_eq!((found.place.as_str(), found.read_only, found.line.as_str(), found.tryboot), ("/boot/firmware", false, STOCK, None));
    let old = board(&format!("{ROOT}{OLD}"), &file);
    let found = Firmware::find(old.path()).unwrap();
    assert_eq!((found.place.as_str(), found.read_only, found.line.as_str()), ("/boot", true, "root=/dev/old\n"));
    assert_eq!(Firmware::find(board(ROOT, &file).path()), None, "a directory that nobody mounted is not read by the firmware");
    assert_eq!(Firmware::find(board(&format!("{ROOT}{FIRMWARE}"), &[]).path()), None);

    let cases = [
        ("boot/firmware/autoboot.txt", "[all]\nboot_partition=2\n", "autoboot.txt"),
        ("proc/device-tree/chosen/bootloader/tryboot", "\0\0\0\u{1}", "trial"),
        ("boot/firmware/config.txt", "[all]\ncmdline=other.txt\n", "another file"),
        ("boot/firmware/config.txt", "os_prefix=new/\n", "another file"),
    ];
    for (path, text, word) in cases {
        let dir = board(&format!("{ROOT}{FIRMWARE}"), &[file[0], (path, text)]);
        assert!(Firmware::find(dir.path()).unwrap().tryboot.is_some_and(|why| why.contains(word)), "{path}");
    }
    let harmless =
        [("proc/device-tree/chosen/bootloader/tryboot", "\0\0\0\0"), ("boot/firmware/config.txt", "# cmdline=x\ncmdline=cmdline.txt\n")];
    let dir = board(&format!("{ROOT}{FIRMWARE}"), &[file[0], harmless[0], harmless[1]]);
    assert_eq!(Firmware::find(dir.path()).unwrap().tryboot, None);
}

#[test]
fn a_line_that_was_there_before_the_boot_is_told_from_one_that_came_since() {
    let file = ("boot/firmware/cmdline.txt", STOCK);
    for (stat, before_boot) in [("cpu 1\nbtime 1700000000\n", false), ("cpu 1\nbtime 99000000000\n", true), ("cpu 1\n", false)] {
        let dir = board(&format!("{ROOT}{FIRMWARE}"), &[file, ("proc/stat", stat)]);
        assert_eq!(Firmware::find(dir.path()).unwrap().before_boot, before_boot, "{stat}");
    }
}

#[test]
fn replacing_keeps_the_old_text_beside() {
    let dir = tempfile::tempdir().unwrap();
    let (file, backup) = (dir.path().join("cmdline.txt"), dir.path().join("cmdline.txt.edge-agent.20261123T120000Z"));
    std::fs::write(&file, STOCK).unwrap();
    let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    replace(&file, Some(&backup), "root=/dev/a\n").unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "root=/dev/a\n");
    assert_eq!(std::fs::read_to_string(&backup).unwrap(), STOCK);
    assert_eq!((mode(&file), mode(&backup)), (0o600, 0o600), "a password in it stays one");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else stays");
    assert!(replace(&dir.path().join("missing"), Some(&backup), "x").is_err());
    replace(&dir.path().join("new"), None, "x").unwrap();
    assert_eq!(mode(&dir.path().join("new")), 0o644);
}
