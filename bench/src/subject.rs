//! The servers that a run asks about: programs that it starts itself, and servers that somebody else has started.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::caller;
use crate::fault::{Fault, Result};
use crate::process::Process;
use crate::server::Program;

pub enum Subject {
    /// Started for each row of the run, on an empty directory.
    Program(Program),
    /// Runs already, and goes on.
    Running(Named),
}

impl Subject {
    /// All that were named, the programs first.
    ///
    /// # Errors
    /// When there is none, or when two have one name.
    pub fn all(programs: Vec<Program>, running: &[Named]) -> Result<Vec<Subject>> {
        let running = running.iter().cloned().map(Subject::Running);
        let subjects: Vec<Subject> = programs.into_iter().map(Subject::Program).chain(running).collect();
        let mut names: Vec<&str> = subjects.iter().map(Subject::name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            // Nobody could tell their rows apart, and in a table they would replace each other.
            Some(pair) => Err(Fault::Refused(format!("two servers are named {}", pair[0]))),
            None if subjects.is_empty() => {
                Err(Fault::Refused("name a server: --etcd PATH, --tarsier PATH or --server NAME=HOST:PORT".to_owned()))
            }
            None => Ok(subjects),
        }
    }

    /// Says at once, and not in each row, that a server is not there or is none.
    pub async fn try_out(&self) -> Result<()> {
        match self {
            Subject::Program(program) => program.start().await?.stop().await,
            Subject::Running(named) => caller::greet(&named.endpoint).await.map(drop),
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Subject::Program(program) => program.side.name(),
            Subject::Running(named) => &named.name,
        }
    }
}

/// A server that somebody else has started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    pub name: String,
    pub endpoint: Arc<str>,
    /// If it was named, too.
    pub process: Option<Process>,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Named, String> {
        let wrong = || format!("{text:?} is not of the form NAME=HOST:PORT or NAME=HOST:PORT@PID");
        let (name, place) = text.split_once('=').ok_or_else(wrong)?;
        let (endpoint, id) = match place.split_once('@') {
            Some((endpoint, id)) => (endpoint, Some(id.parse().map_err(|_| wrong())?)),
            None => (place, None),
        };
        let (host, port) = endpoint.rsplit_once(':').ok_or_else(wrong)?;
        // A scheme would be a host with a slash.
        if name.is_empty() || host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Named { name: name.to_owned(), endpoint: endpoint.into(), process: id.map(|id| Process { id }) })
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_server_is_named_with_its_place() {
        let named = |process| Named { name: "mine".to_owned(), endpoint: "host:2379".into(), process };
        assert_eq!("mine=host:2379".parse(), Ok(named(None)));
        assert_eq!("mine=host:2379@17".parse(), Ok(named(Some(Process { id: 17 }))));
        for text in ["", "host:2379", "=host:2379", "mine=host", "mine=host:x", "mine=host:1@x", "mine=http://host:1"] {
            assert!(text.parse::<Named>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn servers_have_names_of_their_own() {
        let named = |name: &str| format!("{name}=host:1").parse::<Named>().unwrap();
        assert_eq!(Subject::all(Vec::new(), &[named("a"), named("b")]).unwrap().len(), 2);
        assert!(Subject::all(Vec::new(), &[named("a"), named("b"), named("a")]).is_err());
        assert!(Subject::all(Vec::new(), &[]).is_err());
    }
}
