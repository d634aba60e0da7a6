//! The binary: everything it does is in [`durahub::cli`].

use std::process::ExitCode;

/// Small blocks of many sizes, allocated on one thread and freed on another, are most of what a server does:
/// this allocator spends less on them than the system's, and gives memory back.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    durahub::cli::main()
}
