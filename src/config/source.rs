//! Where settings come from: the command line, then `TARSIER_*`, then `ETCD_*`.
//!
//! This file knows names and spellings, not values: it hands over one text for each flag that was given, and the name
//! the operator wrote it under.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::flags::{FLAGS, Flag, Meaning, Shape, find};
use super::subcommand::{CHECK_USAGE, SALVAGE_USAGE};
use super::{ConfigError, Warning};

/// The text of one setting, and what the operator wrote it under: `--name` or `ETCD_NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    pub value: String,
    pub written_as: String,
}

/// What command line and environment say.
#[derive(Debug, Default)]
pub struct Source {
    pub help: bool,
    pub version: bool,
    pub given: BTreeMap<&'static str, Given>,
    pub warnings: Vec<Warning>,
}

impl Source {
    /// Reads both. `args` are without the program's name.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Source, ConfigError> {
        let mut source = Source::default();
        source.read_environment(environment)?;
        source.read_arguments(args)?;
        Ok(source)
    }

    fn read_arguments(&mut self, args: impl IntoIterator<Item = OsString>) -> Result<(), ConfigError> {
        let matches = command().try_get_matches_from(in_long_form(args)).map_err(|error| explain(&error))?;
        self.help = matches.get_flag("help");
        self.version = matches.get_flag("version");
        for flag in FLAGS {
            if let Some(value) = matches.get_one::<String>(flag.name) {
                let given = Given { value: value.clone(), written_as: format!("--{}", flag.name) };
                self.given.insert(flag.name, given);
            }
        }
        Ok(())
    }

    fn read_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        let mut variables = BTreeMap::new();
        for (name, value) in environment {
            // A name that is no text is none of ours.
            let Ok(name) = name.into_string() else { continue };
            if name.starts_with("ETCD_") || name.starts_with("TARSIER_") {
                variables.insert(name, value);
            }
        }
        for flag in FLAGS {
            for prefix in ["ETCD_", "TARSIER_"] {
                let written_as = variable(prefix, flag.name);
                // An empty variable is one that was not set, as in etcd.
                let Some(value) = variables.remove(&written_as).filter(|value| !value.is_empty()) else { continue };
                let value = value.into_string().map_err(|_| ConfigError::NotText { written_as: written_as.clone() })?;
                self.given.insert(flag.name, Given { value, written_as });
            }
        }
        // etcd warns and goes on; a Kubernetes service called etcd alone puts seven such variables into every pod.
        let unknown = variables.into_keys().map(|name| Warning { what: name, why: "no flag has this name, ignored" });
        self.warnings.extend(unknown);
        Ok(())
    }
}

/// The text of `--help`.
pub fn help() -> String {
    command().render_help().to_string()
}

fn variable(prefix: &str, flag: &str) -> String {
    format!("{prefix}{}", flag.replace('-', "_").to_ascii_uppercase())
}

/// Writes every `-flag value`, `--flag value` and `-flag=value` as `--flag=value`. Go takes the word behind a flag as its
/// value whatever it looks like, so the value has to be found before words are taken for flags.
fn in_long_form(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut long = Vec::new();
    while let Some(arg) = args.next() {
        let mut arg = with_two_dashes(arg);
        let flag = arg.to_str().and_then(|text| text.strip_prefix("--")).and_then(find);
        if flag.is_some_and(|flag| flag.shape == Shape::Value)
            && let Some(value) = args.next()
        {
            arg.push("=");
            arg.push(value);
        }
        long.push(arg);
    }
    long
}

fn with_two_dashes(arg: OsString) -> OsString {
    let Some(word) = arg.to_str().and_then(|text| text.strip_prefix('-')) else { return arg };
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    let known = find(name).is_some() || matches!(name, "help" | "version");
    // One letter is a short flag; a longer unknown word is a misspelt flag and wants to be named as one.
    if known || (name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic())) {
        let mut long = OsString::from("-");
        long.push(&arg);
        return long;
    }
    arg
}

fn command() -> clap::Command {
    let switch = |name: &'static str, help: &'static str| {
        clap::Arg::new(name).long(name).action(clap::ArgAction::SetTrue).help(help)
    };
    clap::Command::new("tarsier")
        .about("A watch server: the etcd v3 API with tens of millions of watches in very little memory.")
        .override_usage(format!(
            "tarsier [--flag=value | --flag value | -flag value]...\n       {CHECK_USAGE}\n       {SALVAGE_USAGE}"
        ))
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        // As in Go, the last of several wins.
        .args_override_self(true)
        .arg(switch("help", "Print this help and exit.").short('h'))
        .arg(switch("version", "Print the version and exit."))
        .args(FLAGS.iter().map(argument))
        .after_help(after_help())
}

fn argument(flag: &'static Flag) -> clap::Arg {
    let mut help = flag.help.to_owned();
    if !flag.default.is_empty() {
        help = format!("{help} [default: {}]", flag.default);
    }
    let argument = clap::Arg::new(flag.name)
        .long(flag.name)
        .value_name("VALUE")
        .help(help)
        .hide(flag.meaning != Meaning::Supported);
    match flag.shape {
        Shape::Value => argument,
        Shape::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
    }
}

fn after_help() -> String {
    let names = |wanted: fn(Meaning) -> bool| {
        let names: Vec<String> =
            FLAGS.iter().filter(|flag| wanted(flag.meaning)).map(|flag| format!("--{}", flag.name)).collect();
        names.join(" ")
    };
    format!(
        "tarsier check says what of the data directory of a stopped server is whole; tarsier salvage writes that part into \
         a new directory.\n\nEach flag is also read from the environment, --max-txn-ops from TARSIER_MAX_TXN_OPS and then from \
         ETCD_MAX_TXN_OPS; a flag wins over both. Durations are written as in Go: 100ms, 20s, 1m30s, 2h. Sizes are plain \
         numbers of bytes.\n\nFlags of etcd that are accepted without effect, with a warning unless the value is etcd's \
         default: {}\n\nFlags of etcd that end the start unless the value is etcd's default, since what they promise is \
         not built: {}",
        names(|meaning| matches!(meaning, Meaning::Harmless(_))),
        names(|meaning| matches!(meaning, Meaning::Refused(_))),
    )
}

/// One line for the operator instead of clap's several.
fn explain(error: &clap::Error) -> ConfigError {
    let text = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let word = text(ContextKind::InvalidArg).unwrap_or_default();
    let name = word.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    match error.kind() {
        ErrorKind::UnknownArgument if word.starts_with('-') => {
            // etcd 3.7 has no such flags any more. One that was kept is there without the word; whatever else looks alike
            // does something else.
            let nearest = match name.strip_prefix("--experimental-") {
                Some(kept) => find(kept).map(|flag| format!("--{}", flag.name)),
                None => text(ContextKind::SuggestedArg),
            };
            ConfigError::UnknownFlag { name, nearest }
        }
        ErrorKind::UnknownArgument => ConfigError::NotAFlag { word },
        ErrorKind::InvalidUtf8 => ConfigError::NotText { written_as: "an argument".to_owned() },
        // A value flag at the end of the line, or `--flag=` with nothing behind.
        ErrorKind::InvalidValue | ErrorKind::NoEquals => ConfigError::MissingValue { name },
        // `--help=x` and `--version=x`.
        _ => ConfigError::NotAFlag { word: if word.is_empty() { error.kind().to_string() } else { word } },
    }
}
