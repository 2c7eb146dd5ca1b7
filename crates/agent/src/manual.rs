//! The manual page, from what `--help` knows.

use std::io::{Result, Write};

/// Writes the page: the program, and each command with its options.
pub(crate) fn write(command: &clap::Command, out: &mut dyn Write) -> Result<()> {
    let page = clap_mangen::Man::new(command.clone()).section("8").manual("PostgreSQL administration");
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(out, ".TP\n\\fB{}\\fR\n{about}", command.get_name())?;
        for option in command.get_arguments().filter(|option| option.get_long().is_some()) {
            let long = option.get_long().unwrap_or_default();
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            let default = option.get_default_values().first();
            let default = default.map(|value| format!(" (default {})", value.to_string_lossy()));
            writeln!(out, ".RS\n.TP\n\\fB\\-\\-{long}\\fR\n{help}{}\n.RE", default.unwrap_or_default())?;
        }
    }
    writeln!(
        out,
        ".SH ENVIRONMENT\n.TP\n\\fBPGPOOL_RECOVERY_LOG\\fR\n\
         Level of the log on standard error: error, warn, info (default), debug or trace.\n\
         .SH FILES\n.TP\n/etc/pgpool\\-recovery/agent.toml\nThe configuration, with comments."
    )
}
