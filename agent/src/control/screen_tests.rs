use super::super::{GovernorStatus, Link, PodLine, PressureLine, SignalLine};
use super::*;

const MIB: u64 = 1 << 20;

fn braked() -> Status {
    let pod = |name: &str, ready| PodLine {
        namespace: "default".into(),
        name: name.into(),
        phase: "Running".into(),
        ready,
        ip: "10.42.1.7".into(),
        ..PodLine::default()
    };
    let part = |part: &str, used, planned| ReservationLine {
        part: part.into(),
        used: Some(used * MIB),
        planned: planned * MIB,
        ..ReservationLine::default()
    };
    Status {
        version: "0.1.0".into(),
        node: "zero-2w".into(),
        ready: Some(true),
        lease_age_seconds: Some(4),
        links: vec![Link { server: "10.0.0.1:6443".into(), state: "connected".into(), last_proof_seconds: Some(2) }],
        pressure: vec![
            PressureLine { resource: "cpu".into(), waiting10: 3.2, waiting60: 2.0, stalled10: 0.0 },
            PressureLine { resource: "memory".into(), waiting10: 41.5, waiting60: 12.0, stalled10: 22.0 },
            PressureLine { resource: "io".into(), waiting10: 12.0, waiting60: 9.0, stalled10: 8.0 },
        ],
        reservations: vec![
            ReservationLine { min: Some(92 * MIB), ..part("system", 61, 72) },
            ReservationLine { high: Some(195 * MIB), max: Some(212 * MIB), ..part("kubepods", 196, 212) },
        ],
        governor: GovernorStatus {
            mode: "enforce".into(),
            state: "freeze".into(),
            state_seconds: 3,
            signals: vec![SignalLine { signal: "own_mem".into(), level: "act".into(), value: "7.0 %".into() }],
            actions: vec![
                ActionLine {
                    seconds_ago: 3,
                    action: "freeze".into(),
                    target: "default/hog".into(),
                    reason: "own_mem 7 % over 5 %".into(),
                    result: "ok".into(),
                },
                ActionLine {
                    seconds_ago: 5,
                    action: "memory_high".into(),
                    target: "default/hog".into(),
                    reason: "brake 31 % over 10 %".into(),
                    result: "ok".into(),
                },
            ],
            frozen: vec!["default/hog".into()],
            throttled: vec!["default/hog memory.high 64 MiB".into()],
            degraded: Vec::new(),
        },
        pods: vec![pod("web-1", true), pod("hog", false), pod("web-0", true)],
        ..Status::default()
    }
}

const PLAIN: Look = Look { width: 80, height: 40, colour: false, blocks: false };

#[test]
fn a_frame_shows_pressure_reservations_ladder_actions_links_and_pods() {
    let frame = frame(&braked(), None, "14:05:09", &PLAIN).join("\n");
    insta::assert_snapshot!(frame, @r"
    zero-2w  Ready  lease 4 s ago  edge-agent 0.1.0  14:05:09

    PRESSURE  tasks waiting, of 10 s (60 s); all stalled, of 10 s
      cpu       #.......................................   3.2 % (  2.0 %)    0.0 %
      memory    #################.......................  41.5 % ( 12.0 %)   22.0 %
      io        #####...................................  12.0 % (  9.0 %)    8.0 %

    MEMORY  MiB used of planned; promised, braked and limited by the kernel
      system    ######################....    61 of    72  promise 92
      kubepods  ########################..   196 of   212  brake 195  limit 212

    GOVERNOR  enforce
      calm > watch > brake > [FREEZE] > evict > cull  for 3 s
      act        own_mem  7.0 %
      frozen     default/hog
      held       default/hog memory.high 64 MiB
        3 s ago  freeze default/hog ok  own_mem 7 % over 5 %
        5 s ago  memory_high default/hog ok  brake 31 % over 10 %

    LINKS
      10.0.0.1:6443  connected  last proof of life 2 s ago

    PODS  2 of 3 ready
      Running    default/hog  restarts 0  10.42.1.7
      Running    default/web-0  restarts 0  10.42.1.7
      Running    default/web-1  restarts 0  10.42.1.7
    ");
}

#[test]
fn a_frame_fits_every_terminal() {
    let mut status = braked();
    status.pods = (0..50).map(|number| PodLine { name: format!("pod-{number}"), ..status.pods[0].clone() }).collect();
    for (width, height) in [(80, 24), (40, 10), (200, 60), (1, 1), (20, 100)] {
        let look = Look { width, height, colour: false, blocks: true };
        let rows = frame(&status, Some("no agent answers"), "14:05:09", &look);
        assert!(rows.len() <= height, "{width}x{height}: {} rows", rows.len());
        assert!(rows.iter().all(|row| row.chars().count() <= width), "{width}x{height}");
    }
    let all = frame(&status, None, "14:05:09", &Look { height: 40, ..PLAIN });
    assert_eq!(all.len(), 40);
    assert_eq!(all[39].trim(), "and 34 more");
}

#[test]
fn names_do_not_steer_the_terminal() {
    let mut status = braked();
    status.node = "n\x1b[2J\r\nx".into();
    status.governor.actions[0].reason = "\x1b]0;title\x07".into();
    let look = Look { colour: true, ..PLAIN };
    let text = frame(&status, None, "14:05:09", &look).concat();
    assert!(text.contains("n[2Jx") && !text.contains("\x1b[2J") && !text.contains("\x1b]0"), "{text:?}");
    assert!(!line(&status, "14:05:09").contains('\x1b'));
}

#[test]
fn one_look_is_one_line_and_actions_are_news_once() {
    let status = braked();
    assert_eq!(
        line(&status, "14:05:09"),
        "14:05:09 zero-2w Ready lease 4 s links 1/1 pods 2/3 cpu 3.2 % memory 41.5 % io 12.0 % kubepods 196/212 MiB \
         governor enforce freeze frozen 1 held 1"
    );
    let now = &status.governor.actions;
    let told = news(&[], now, 2, "14:05:09");
    assert_eq!(
        told,
        [
            "14:05:09 5 s ago memory_high default/hog ok: brake 31 % over 10 %",
            "14:05:09 3 s ago freeze default/hog ok: own_mem 7 % over 5 %"
        ]
    );
    let mut later = now.clone();
    later.iter_mut().for_each(|line| line.seconds_ago += 2);
    assert!(news(now, &later, 2, "14:05:11").is_empty());
    later.insert(0, ActionLine { seconds_ago: 0, ..now[0].clone() });
    assert_eq!(news(now, &later, 2, "14:05:11").len(), 1, "the same done again");
}
