//! Every setting and every option, one row each. [`settings!`] says what a row means and what is made of it.

use crate::settings::kinds::{Boolean, Choice, Integer, Real, Seconds, Text};
use crate::settings::macros::{choices, settings};
use crate::settings::nodes::{OtherNode, nodes};
use crate::settings::options::{boolean, integer};
use crate::settings::request::host;
use crate::settings::values::{keep_files, tablespace_mapping};

settings! {
    settings {
        agent_port: Integer<u16> = Integer::new(9897, 1..=65_535), option: Superusers, shown: All,
            "Port on which recovery agents listen.";

        secret_file: Text = Text::new(c"/etc/pgpool-recovery/secret"), option: Superusers, shown: Superusers,
            "File with the shared secret of the primary and the agents, mode 0600.";

        transport: Choice<Transport> = Choice::new(Transport::Auto), option: Superusers, shown: All,
            "How a target is reached: auto, agent or local.";

        replication_user: Text = Text::new(c""), option: Superusers, shown: All,
            "User in the standby's primary_conninfo; empty: the role that calls.";

        primary_host: Text = Text::read_by(c"", host), option: Superusers, shown: All,
            "Host in the standby's primary_conninfo when the caller passes none.";

        primary_port: Integer<u16> = Integer::new(0, 0..=65_535), option: Superusers, shown: All,
            "Port in the standby's primary_conninfo when the caller passes none; 0: the server's own.";

        application_name: Text = Text::new(c"%h"), option: All, shown: All,
            "Template of application_name in the standby's primary_conninfo: %h host, %n node id, %p port.";

        slot_name: Text = Text::new(c"%h"), option: All, shown: All,
            "Template of the standby's replication slot: %h host, %n node id, %p port; empty: no slot.";

        passfile: Text = Text::new(c""), option: Superusers, shown: Superusers,
            "Password file in the standby's primary_conninfo.";

        restore_command: Text = Text::new(c""), option: Superusers, shown: Superusers,
            "restore_command written to the standby.";

        overwrite: Choice<Overwrite> = Choice::new(Overwrite::Same), option: Superusers, shown: All,
            "Which non-empty target may be replaced: same (a cluster of this system) or any_cluster.";

        keep_files: Text<Vec<String>> = Text::read_by(c"postgresql.conf", |_, text| keep_files(text)),
            option: Superusers, shown: All,
            "Files of the standby's own that are neither overwritten nor removed, separated by commas.";

        tablespace_mapping: Text<Vec<(String, String)>> = Text::read_by(c"", |_, text| tablespace_mapping(text)),
            option: Superusers, shown: All,
            "Directories of tablespaces on the standby: old=new, separated by commas.";

        jobs: Integer<usize> = Integer::new(0, 0..=64), option: Superusers, shown: All,
            "Parallel streams; 0: by the number of CPUs.";

        compression: Choice<Compression> = Choice::new(Compression::Auto), option: All, shown: All,
            "Compression on the wire: auto, off, lz4 or zstd.";

        max_rate: Integer<u64> = Integer::new(0, 0..=i32::MAX).in_kilobytes(), option: All, shown: All,
            "Most data sent to a target per second, before compression; 0: no limit.";

        clone: Boolean = Boolean::new(true), option: All, shown: All,
            "Let a target on the primary's own file system share blocks with it where that can be done.";

        verify_checksums: Boolean = Boolean::new(true), option: All, shown: All,
            "Check page checksums while reading, as pg_basebackup does.";

        skip_unchanged: Choice<SkipUnchanged> = Choice::new(SkipUnchanged::Off), option: Superusers, shown: All,
            "Leave out blocks that the WAL of both sides proves equal: off, shadow (only try the proof) or on.";

        skip_sample: Real = Real::new(0.1, 0.01..=100.0), option: Superusers, shown: All,
            "Percent of the left out blocks that are compared all the same, of at least 10,000 blocks.";

        scripts: Choice<Scripts> = Choice::new(Scripts::Run), option: Superusers, shown: All,
            "What pgpool_recovery() does with the name of a script: run it, ignore it, or refuse.";

        // at most a day
        start_timeout: Seconds = Seconds::new(60, 1..=86_400), option: All, shown: All,
            "How long pgpool_remote_start() waits for the standby to stream.";

        // at most a day
        retry_for: Seconds = Seconds::new(300, 0..=86_400), option: All, shown: All,
            "How long a recovery whose connection to the target's host broke tries to go on; 0: not at all.";

        stop_target: Boolean = Boolean::new(false), option: Superusers, shown: All,
            "Whether a recovery first stops the target's server: a standby, or a primary that this one has replaced.";

        // at most a day
        stop_timeout: Seconds = Seconds::new(60, 1..=86_400), option: Superusers, shown: All,
            "How long a fast shutdown of a target's server may take before it becomes an immediate one.";

        // at most an hour
        follow_timeout: Seconds = Seconds::new(15, 1..=3_600), option: All, shown: All,
            "How long pgpool_recovery_follow() waits for the standby to stream, without progress, before it restarts it.";

        on_diverged: Choice<OnDiverged> = Choice::new(OnDiverged::Report), option: All, shown: All,
            "What pgpool_recovery_follow() does with a server that has diverged: report it, or rebuild it.";

        fence: Choice<Fence> = Choice::new(Fence::BestEffort), option: All, shown: All,
            "Whether a promotion stops the old primary first: best_effort, required or off.";

        // at most an hour
        deadline: Seconds = Seconds::new(30, 1..=3600), option: All, shown: All,
            "How long a promotion may take, with all that belongs to it.";

        // read when it binds a caller: preflight::authority
        local_directories: Text = Text::new(c""), option: NoOne, shown: Superusers,
            "Directories beneath which callers who are not superusers may have local targets, separated by commas.";
    }

    options {
        node_id: Option<i32> = |key, value| integer(key, value, &(0..=i32::MAX)).map(Some),
            "Pgpool-II's number of the node.";

        dest_port: Option<u16> = |key, value| integer(key, value, &(1..=65_535)).map(|port| Some(port as u16)),
            "The target's own port.";

        nodes: Vec<OtherNode> = nodes,
            "The nodes that are to follow a standby that is promoted.";

        wait_for_checkpoint: bool = boolean,
            "Whether the backup waits for a spread checkpoint instead of asking for a fast one.";

        start: bool = boolean,
            "Whether the standby is started in the same call.";

        native: bool = boolean,
            "Whether a check or a dry run is that of a node which becomes a server of its own, by a second stage.";

        dry_run: bool = boolean,
            "Whether the call only tells what would be sent, and changes nothing.";
    }

    caller {
        caller_is_superuser: bool,
            "Whether the caller may pass every option and have local targets anywhere.";
    }
}

choices! {
    /// How a target is reached.
    Transport {
        /// A target on this host is written directly, any other through its agent.
        Auto = c"auto",
        /// Always through the agent.
        Agent = c"agent",
        /// Always written directly.
        Local = c"local",
    }

    /// What is done to the old primary before a standby is promoted.
    Fence {
        /// It is stopped if it can be reached.
        BestEffort = c"best_effort",
        /// Without its end nothing is promoted.
        Required = c"required",
        /// Nothing.
        Off = c"off",
    }

    /// Which non-empty target may be replaced.
    Overwrite {
        /// A stopped cluster with this primary's system identifier, or what an interrupted recovery left.
        Same = c"same",
        /// Any stopped PostgreSQL cluster.
        AnyCluster = c"any_cluster",
    }

    /// How data is compressed on the wire.
    Compression {
        /// Whichever pays.
        Auto = c"auto",
        /// Not at all.
        Off = c"off",
        /// LZ4.
        Lz4 = c"lz4",
        /// Zstandard.
        Zstd = c"zstd",
    }

    /// What becomes of a server that cannot follow without a copy.
    OnDiverged {
        /// An error.
        Report = c"report",
        /// It is stopped, recovered and started.
        Rebuild = c"rebuild",
    }

    /// Whether blocks that WAL proves equal are left out.
    SkipUnchanged {
        /// Everything is compared.
        Off = c"off",
        /// Everything is compared, and what contradicts the proof is told.
        Shadow = c"shadow",
        /// They are read on neither side.
        On = c"on",
    }

    /// What `pgpool_recovery` does with a script name that is not ours.
    Scripts {
        /// Runs the script of that name in the data directory.
        Run = c"run",
        /// Ignores the name and recovers.
        Ignore = c"ignore",
        /// Raises an error.
        Refuse = c"refuse",
    }
}
