//! The settings as command-line flags.
//!
//! Flags are built from the settings table and keep their values as text: every value, from whichever
//! source, is judged in one place, so that all problems can be reported at once. The variables are read by
//! [`Config::load`](super::Config::load), not by clap, for the same reason; the help text names them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};

use super::settings;
use super::{CONFIG_VARIABLE, Config};

/// What the command line gives. [`Flags::default`] gives nothing.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Path of the configuration file (`--config`).
    pub config: Option<PathBuf>,
    /// Values by settings key.
    pub(super) values: BTreeMap<&'static str, String>,
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Flags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        if let Some(path) = matches.get_one::<PathBuf>("config") {
            self.config = Some(path.clone());
        }
        for setting in settings::all() {
            if let Some(value) = matches.get_one::<String>(setting.key) {
                self.values.insert(setting.key, value.clone());
            }
        }
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let defaults = Config::default();
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!("TOML file with any of the settings below.\n[env: {CONFIG_VARIABLE}]"));
        settings::all().fold(command.arg(config), |command, setting| {
            let shown = (setting.show)(&defaults);
            let default = match shown.trim_matches(['"', '[', ']']) {
                "" => String::new(),
                shown => format!("[default: {shown}] "),
            };
            let also = setting.emulator.map(|name| format!(", {name}")).unwrap_or_default();
            let heading = match setting.table() {
                "storage" => "Storage",
                "limits" => "Limits",
                "retention" => "Retention",
                "tracing" => "Tracing",
                "" => "Settings",
                _ => "Security",
            };
            let mut arg = Arg::new(setting.key)
                .long(setting.flag())
                .value_name(setting.value_name)
                .help_heading(heading)
                .help(format!("{}\n{default}[env: {}{also}]", setting.text(), setting.variable()));
            if setting.is_switch() {
                arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
