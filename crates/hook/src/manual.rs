//! The manual page, from what `--help` knows.

use std::io::{Result, Write};

/// Writes the page: the program, and each command with its options.
pub(crate) fn write(command: &clap::Command, out: &mut dyn Write) -> Result<()> {
    let page = clap_mangen::Man::new(command.clone()).section("8").manual("Pgpool-II administration");
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(out, ".TP\n\\fB{}\\fR\n{about}", command.get_name())?;
        for option in command.get_arguments() {
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            let name = match option.get_long() {
                Some(long) => format!("\\-\\-{long}"),
                None => option.get_id().to_string().to_uppercase(),
            };
            let default = option.get_default_values().first();
            let default = default.map(|value| format!(" (default {})", value.to_string_lossy()));
            writeln!(out, ".RS\n.TP\n\\fB{name}\\fR\n{help}{}\n.RE", default.unwrap_or_default())?;
        }
    }
    writeln!(
        out,
        ".SH FILES\n.TP\n~/.pgpass, ~/.pcppass\nPasswords, of the user that Pgpool-II runs as.\n\
         .SH SEE ALSO\n.BR pgpool\\-recovery\\-agent (8)"
    )
}
