//! The binary: everything it does is in [`durahub::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    durahub::cli::main()
}
