//! The Python tools: installed once into `target/deploy`, at the versions that `requirements.txt` pins.
//!
//! A machine without python3 fails the tests that need them, unless `DURAHUB_SKIP_DEPLOY=1` says to skip them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a script of `tests/deploy` and shows what it says when it fails.
#[allow(clippy::print_stderr)] // that a test was skipped must be seen
pub(crate) fn run(script: &str, args: &[&str]) {
    if std::env::var_os("DURAHUB_SKIP_DEPLOY").is_some_and(|value| value == "1") {
        eprintln!("skipped: DURAHUB_SKIP_DEPLOY=1");
        return;
    }
    let home = install();
    let mut command = Command::new(home.join("bin/python"));
    command.arg(sources().join(script)).args(args).env("PYTHONDONTWRITEBYTECODE", "1");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DURAHUB_")) {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.trim_end().ends_with("ok"),
        "{script} failed with {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy")
}

/// Installs the tools unless exactly these are there. Tests of this and other processes take turns.
fn install() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let home = target.join("deploy");
    let lock = File::create(target.join("deploy.lock")).unwrap();
    lock.lock().unwrap();
    let remedy =
        "install Python 3.10 or newer with venv (Debian: apt-get install python3 python3-venv)";
    let check =
        "import sys, venv, ensurepip; assert sys.version_info >= (3, 10); print(sys.version)";
    let version = step(Command::new("python3").args(["-c", check]), remedy);
    let pins = sources().join("requirements.txt");
    let wanted = version + &fs::read_to_string(&pins).unwrap();
    if fs::read_to_string(home.join("installed")).is_ok_and(|installed| installed == wanted) {
        return home;
    }
    let _ = fs::remove_dir_all(&home);
    step(Command::new("python3").args(["-m", "venv"]).arg(&home), remedy);
    let mut pip = Command::new(home.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]);
    step(pip.arg("--requirement").arg(pins), "PyPI must be reachable through pip");
    step(Command::new(home.join("bin/pip")).arg("check"), "requirements.txt must be complete");
    fs::write(home.join("installed"), wanted).unwrap();
    home
}

fn step(command: &mut Command, remedy: &str) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}: {remedy}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {remedy}, or set DURAHUB_SKIP_DEPLOY=1\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
