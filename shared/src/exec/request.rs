//! What may be asked for. Pure; checked by the coordinator, and again by the node.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// Most bytes of a command, its environment and its folder together.
const BYTES: usize = 64 << 10;
/// Most words of a command, and most variables.
const WORDS: usize = 1024;
/// Most rows and columns of a terminal.
const SIZE: u16 = 2000;
/// Names of the user that every command runs as.
const OWN_USER: [&str; 2] = ["agent", "1000"];

/// A command to run in an instance. It may hold secrets: `Debug` shows only what is run.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The program and its arguments; empty: a login shell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// On a terminal of its own.
    #[serde(default)]
    pub tty: bool,
    /// Of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    /// Added to the container's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where it starts; none: where the image says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Only the instance's own, which is also what is meant without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

impl Size {
    /// False for what no terminal has.
    pub fn is_sane(self) -> bool {
        (1..=SIZE).contains(&self.rows) && (1..=SIZE).contains(&self.cols)
    }
}

impl Request {
    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// Says what is wrong, for people.
    pub fn check(&self) -> Result<(), Problem> {
        let refuse = |text: &str| Err(Problem::invalid(text));
        if self.command.first().is_some_and(String::is_empty) {
            return refuse("command must begin with a program; leave it out for a login shell");
        }
        if self.command.len() > WORDS || self.env.len() > WORDS {
            return refuse("command and env may have at most 1024 entries each");
        }
        let words = self.command.iter().chain(self.env.values()).chain(&self.workdir);
        if words.clone().any(|word| word.contains('\0')) {
            return refuse("command, env and workdir must not hold a NUL");
        }
        let bytes = words.map(String::len).sum::<usize>() + self.env.keys().map(String::len).sum::<usize>();
        if bytes > BYTES {
            return refuse("command, env and workdir may have at most 64 KiB together: send more by standard input");
        }
        if self.env.keys().any(|name| !is_variable(name)) {
            return refuse("env: a name has letters, digits and `_`, and begins with no digit");
        }
        if self.workdir.as_ref().is_some_and(|folder| !folder.starts_with('/')) {
            return refuse("workdir must be an absolute path in the instance");
        }
        if self.user.as_ref().is_some_and(|user| !OWN_USER.contains(&user.as_str())) {
            return refuse("user: commands run as the instance's own user, `agent`: leave user out");
        }
        match (self.tty, self.rows, self.cols) {
            (_, None, None) => Ok(()),
            (true, Some(rows), Some(cols)) if (Size { rows, cols }).is_sane() => Ok(()),
            (true, ..) => refuse("rows and cols are given together, each from 1 to 2000"),
            (false, ..) => refuse("rows and cols are a terminal's: set tty, or leave them out"),
        }
    }

    /// The terminal's size, if it is said.
    pub fn size(&self) -> Option<Size> {
        Some(Size {
            rows: self.rows?,
            cols: self.cols?,
        })
    }

    /// What is run, without what may be secret: for logs and histories.
    pub fn subject(&self) -> String {
        let program = self.command.first().map_or("a login shell".to_owned(), |program| {
            let shown: String = program.escape_debug().take(80).collect();
            match self.command.len() {
                1 => format!("`{shown}`"),
                words => format!("`{shown}` with {} arguments", words - 1),
            }
        });
        if self.tty {
            format!("{program}, on a terminal")
        } else {
            program
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Request").field(&self.subject()).finish()
    }
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refusal(request: Value) -> Option<String> {
        let request: Request = serde_json::from_value(request).unwrap();
        request.check().err().map(|problem| problem.to_string())
    }

    #[test]
    fn request__should_be_taken_when_it_can_be_run() {
        for good in [
            json!({}),
            json!({"command": ["ls", ""], "workdir": "/home/agent", "user": "agent"}),
            json!({"tty": true, "rows": 24, "cols": 80, "env": {"TERM": "", "_x1": "y"}}),
        ] {
            assert_eq!(refusal(good.clone()), None, "{good}");
        }
    }

    #[test]
    fn request__should_be_refused_by_name_of_what_is_wrong() {
        for (bad, word) in [
            (json!({"command": [""]}), "command"),
            (json!({"command": ["a\0b"]}), "NUL"),
            (json!({"command": vec!["x"; 1025]}), "1024"),
            (json!({"command": ["x".repeat(65537)]}), "64 KiB"),
            (json!({"env": {"A=B": "c"}}), "env"),
            (json!({"env": {"": "c"}}), "env"),
            (json!({"workdir": "home"}), "workdir"),
            (json!({"user": "root"}), "user"),
            (json!({"user": "0"}), "user"),
            (json!({"rows": 24, "cols": 80}), "tty"),
            (json!({"tty": true, "rows": 24}), "together"),
            (json!({"tty": true, "rows": 0, "cols": 80}), "2000"),
        ] {
            let text = refusal(bad.clone()).unwrap_or_default();
            assert!(text.contains(word), "{bad}: {text}");
        }
    }

    #[test]
    fn subject__should_hold_nothing_secret_and_nothing_that_breaks_a_line() {
        let request = Request {
            command: vec!["cu\nrl".to_owned(), "-H".to_owned(), "authorization: hunter2".to_owned()],
            tty: true,
            env: BTreeMap::from([("KEY".to_owned(), "hunter2".to_owned())]),
            ..Request::default()
        };
        assert_eq!(request.subject(), r"`cu\nrl` with 2 arguments, on a terminal");
        assert!(!format!("{request:?}").contains("hunter2"));
        assert_eq!(Request::default().subject(), "a login shell");
    }
}
