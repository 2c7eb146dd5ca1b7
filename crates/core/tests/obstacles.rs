//! What would keep a run from ending is told before it begins: all of it to one that looks, and the first refuses one that
//! would begin.

mod fixture;

use std::fs;
use std::os::unix::fs::symlink;

use fixture::{Hosts, pages, transports};
use pgpool_recovery_core::error::Kind;
use pgpool_recovery_core::manifest::exclude::MARKER;
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::sender::Planned;
use pgpool_recovery_core::wire::protocol::message::Purpose;

#[test]
fn lack_of_room_and_what_is_in_the_way_are_two_answers() {
    let hosts = Hosts::new();
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts.write("elsewhere/pg_control", &pages(1, 1));
    symlink(hosts.path("elsewhere"), hosts.path("standby/global")).expect("a link");
    let vast = fs::File::create(hosts.path("primary/base/5/1")).expect("a file");
    // sparse: no disk has this much
    vast.set_len(8 << 40).expect("a size");
    for (name, connector) in transports(&hosts) {
        let before = hosts.listing("standby");
        let (session, _) = hosts.open(&connector, Purpose::Look).expect(name);
        let (plan, header) = hosts.list(&session).expect(name);
        let (session, Planned { space, obstacle, locations }) = session.propose(plan, header).expect(name);
        assert_eq!(space.expect("no room").kind, Kind::DiskFull, "{name}");
        let obstacle = obstacle.expect("a link");
        assert!(obstacle.message.contains("global\" is a symbolic link"), "{name}: {obstacle}");
        assert!(obstacle.hint.is_some() && locations.len() == 1, "{name}: {obstacle}");
        drop(session);
        assert_eq!(hosts.dry_run(&connector).expect_err(name).kind, Kind::DiskFull);
        assert_eq!(hosts.run(&connector).expect_err(name).kind, Kind::DiskFull);
        assert_eq!(hosts.listing("standby"), before, "{name}");
    }
    vast.set_len(8192).expect("a size");
    for (name, connector) in transports(&hosts) {
        let before = hosts.listing("standby");
        let (session, _) = hosts.open(&connector, Purpose::Look).expect(name);
        let (plan, header) = hosts.list(&session).expect(name);
        let (session, planned) = session.propose(plan, header).expect(name);
        assert!(planned.space.is_none() && planned.obstacle.is_some(), "{name}: {planned:?}");
        drop(session);
        for refused in [hosts.dry_run(&connector), hosts.run(&connector)] {
            assert_eq!(refused.expect_err(name).kind, Kind::TargetRefused);
        }
        assert_eq!(hosts.listing("standby"), before, "{name}");
        assert!(!hosts.path("standby").join(MARKER).exists());
    }
}

#[test]
fn what_a_kept_configuration_says_about_hot_standby_is_told() {
    let mut hosts = Hosts::new();
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts.write("standby/postgresql.conf", b"# f\xfcr alle\nMax_Connections = 7\ninclude_dir 'conf.d'\n");
    hosts.write("standby/conf.d/1.conf", b"max_wal_senders 3\nmax_connections = '9'\n");
    hosts.write("standby/postgresql.auto.conf", b"hot_standby = off\n");
    for (keep, counts) in [
        (&["postgresql.conf", "postgresql.auto.conf"][..], (Some(2), Some(1))),
        (&["postgresql.conf"], (Some(2), None)),
        (&["postgresql.auto.conf"], (None, Some(1))),
        (&[], (None, None)),
    ] {
        hosts.keep = keep.iter().map(|name| RelPath::parse(name).expect("valid")).collect();
        for (name, connector) in transports(&hosts) {
            let (session, _) = hosts.open(&connector, Purpose::Look).expect(name);
            let said = &session.target().hot_standby;
            let count = |settings: &Option<Vec<_>>| settings.as_ref().map(Vec::len);
            assert_eq!((count(&said.main), count(&said.auto)), counts, "{name}: {said:?}");
            let Some(main) = &said.main else { continue };
            let connections = &main[0];
            assert_eq!(
                (connections.place.what.as_str(), connections.value.as_str()),
                ("max_connections", "9")
            );
            assert!(connections.place.file.ends_with("conf.d/1.conf") && connections.place.line == 2);
        }
    }
}
