//! The command line: which command runs, in which runtime, and how its failure is told.
//!
//! `durahub` alone is `durahub serve`. A command that fails prints one message on standard error, the chain
//! of causes once, and exits with code 1; a command line that cannot be understood exits with code 2, as is
//! the custom. What a node is told beyond the command stands in [`Config`].
//!
//! Commands that talk to a running server do so over its public gRPC port and know nothing else of it:
//! [`hub`], [`instance`] and [`entity`], on what [`connect`], [`failure`] (more exit codes) and [`show`] give them.

mod cluster;
mod connect;
mod entity;
mod failure;
mod health;
mod hub;
mod instance;
mod show;

use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::show::print;
use crate::bench::BenchArgs;
use crate::config::{Config, Flags, LogFormat};
use crate::shutdown::Signals;
use crate::telemetry::logs::{self, Style};
use crate::{access, panics, server};

/// Below this many threads, one task that blocks for a moment would stall the others.
const LEAST_WORKERS: usize = 4;

#[derive(Debug, Parser)]
#[command(
    name = "durahub",
    version,
    about = "A self-hosted, Raft-replicated scheduler for durable orchestrations",
    long_about = "A self-hosted, Raft-replicated scheduler for durable orchestrations: the server behind the \
        Durable Task SDKs.\n\nWithout a command and without settings it runs a persistent single node on \
        loopback with the task hub \"default\". Settings come from a TOML file, then DURAHUB_* variables, \
        then flags; the later wins.",
    args_conflicts_with_subcommands = true,
    max_term_width = 120
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or Ctrl-C (the default command).
    Serve(Flags),
    /// Look at the configuration without running a node.
    Config(ConfigArgs),
    /// Ask a node whether it takes work, or only whether it lives.
    Health(health::HealthArgs),
    /// Look at a cluster and change it while it runs.
    Cluster(cluster::ClusterArgs),
    /// Create, list and delete task hubs of a running server.
    Hub(hub::HubArgs),
    /// Start, read and steer instances on a running server.
    Instance(instance::InstanceArgs),
    /// Show the entities of a running server, and who holds their locks.
    Entity(entity::EntityArgs),
    /// Print a script that completes command lines in a shell.
    #[command(
        after_help = "Bash: source <(durahub completions bash). Zsh: durahub completions zsh > a file _durahub in a \
        folder of $fpath. Fish: durahub completions fish > ~/.config/fish/completions/durahub.fish"
    )]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Make static tokens for auth.mode token.
    Token(TokenArgs),
    /// Load a server and measure it.
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Do not open the files that the configuration names: they are on another machine
    #[arg(long)]
    without_files: bool,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Args)]
struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Draw a token; print it once, and the entry for the file of tokens (auth.tokens_file), which holds only
    /// its hash.
    New {
        /// Name of whoever gets it, for grants and the audit log
        name: String,
        /// What it may do, as ROLE@HUB, comma separated; roles are reader, worker, contributor and admin
        #[arg(long, value_name = "GRANTS", value_delimiter = ',')]
        grants: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check file, variables and flags, and the files of certificates, keys and tokens that they name; list every
    /// problem (exit code 1), or print the settings in effect as TOML.
    Check(CheckArgs),
    /// Print all settings with their defaults as a commented TOML file.
    Reference,
}

/// Runs the program: reads the command line, does what it says, tells what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    panics::install();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done when even standard error is gone.
            let _ = writeln!(io::stderr().lock(), "error: {error:#}");
            let failure = error.downcast_ref::<failure::Failure>();
            failure.map_or(ExitCode::FAILURE, |failure| ExitCode::from(failure.reason as u8))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(flags) => serve(flags),
        Command::Config(ConfigArgs { command: ConfigCommand::Check(check) }) => {
            let config = load(&check.flags)?;
            if !check.without_files {
                server::check(&config)?;
            }
            let unused = config.unused.iter().map(|it| format!("\n# Not used: {it}\n"));
            print(&(config.to_toml() + &unused.collect::<String>()))
        }
        Command::Config(ConfigArgs { command: ConfigCommand::Reference }) => {
            print(&Config::default().to_toml())
        }
        Command::Health(args) => print(&runtime()?.block_on(health::run(&args))?),
        Command::Cluster(args) => print(&runtime()?.block_on(cluster::run(args))?),
        Command::Hub(args) => runtime()?.block_on(hub::run(args)),
        Command::Instance(args) => runtime()?.block_on(instance::run(args)),
        Command::Entity(args) => runtime()?.block_on(entity::run(args)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "durahub", &mut script);
            print(&String::from_utf8(script).context("write the script")?)
        }
        Command::Token(TokenArgs { command: TokenCommand::New { name, grants } }) => {
            print(&new_token(&name, &grants)?)
        }
        Command::Bench(args) => runtime()?.block_on(crate::bench::run(args)),
    }
}

fn serve(flags: Flags) -> anyhow::Result<()> {
    let config = load(&flags)?;
    let style = match config.log_format {
        LogFormat::Json => Style::Json,
        LogFormat::Text => Style::Text,
        LogFormat::Auto if io::stderr().is_terminal() => Style::Text,
        LogFormat::Auto => Style::Json,
    };
    logs::start(&config.log_level, style)?;
    runtime()?.block_on(async {
        let signals = Signals::listen().context("listen for signals")?;
        let variable = |name: &str| std::env::var(name).ok();
        let source = server::Source {
            file: Config::file(&flags, variable),
            load: Box::new(move || Config::load(&flags, variable)),
        };
        Box::pin(server::run(config, source, signals.first_then_exit_on_second())).await
    })
}

fn new_token(name: &str, grants: &[String]) -> anyhow::Result<String> {
    if let Some(wrong) = grants.iter().find(|grant| access::Grant::parse(grant).is_none()) {
        let text = format!("--grants: {wrong:?} is not ROLE@HUB, such as worker@orders or admin@*");
        return Err(failure::Failure::new(failure::Reason::Usage, text).into());
    }
    let (token, sha256) =
        access::new_token().map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    // Strings of JSON are strings of TOML.
    let (name, grants) = (serde_json::json!(name), serde_json::json!(grants));
    Ok(format!(
        "# The token, shown this once:\n{token}\n\n# For auth.tokens_file:\n[[token]]\nname = {name}\n\
         sha256 = \"{sha256}\"\ngrants = {grants}\n"
    ))
}

fn load(flags: &Flags) -> anyhow::Result<Config> {
    Ok(Config::load(flags, |name| std::env::var(name).ok())?)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(LEAST_WORKERS))
        .thread_name("durahub")
        .enable_all()
        .build()
        .context("start the async runtime")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_work_with_and_without_serve() {
        for line in
            [&["durahub", "--partitions", "3"][..], &["durahub", "serve", "--partitions", "3"]]
        {
            let cli = Cli::try_parse_from(line).unwrap();
            let Command::Serve(flags) = cli.command.unwrap_or(Command::Serve(cli.serve)) else {
                panic!("{line:?}")
            };
            assert_eq!(Config::load(&flags, |_| None).unwrap().partitions, 3);
        }
        assert!(Cli::try_parse_from(["durahub", "--partitions", "3", "serve"]).is_err());
    }

    #[test]
    fn help_names_flag_unit_default_and_variable_of_every_setting() {
        let help = Cli::command().render_long_help().to_string();
        for part in [
            "--max-message-bytes <BYTES>",
            "[default: 64MiB] [env: DURAHUB_MAX_MESSAGE_BYTES]",
            "[default: default] [env: DURAHUB_TASK_HUBS, DTS_TASK_HUB_NAMES]",
            "[default: 0] [env: DURAHUB_CACHE_MB]",
            "--ephemeral[=<BOOL>]",
        ] {
            assert!(help.replace('\n', " ").contains(part), "{part:?} is missing in:\n{help}");
        }
    }
}
