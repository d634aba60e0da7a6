//! What is wrong with a configuration, told all at once.

use std::fmt;

/// One thing that is wrong, with what its reader needs to put it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Key of the setting, such as `partitions`, or `config` for the file as a whole.
    pub key: String,
    /// The value that was found, as it was written.
    pub value: String,
    /// Where it was found: a file, a variable or a flag.
    pub origin: String,
    /// What would be right, to end the sentence "allowed is …", or what went wrong.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({}): {}", self.key, self.value, self.origin, self.remedy)
    }
}

/// All problems of a configuration, at least one, in the order of the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The problems.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [problem] => write!(f, "invalid configuration: {problem}"),
            problems => {
                write!(f, "invalid configuration, {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}
