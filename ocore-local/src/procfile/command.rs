//! Command lines: words, quotes and `$NAME`, and nothing else of what a shell understands.

/// A command line, split into words but not yet expanded.
///
/// * Words are separated by blanks. `'…'` is taken as it is; in `"…"` and outside, `\` takes the next character as it
///   is, and `$NAME` or `${NAME}` is replaced. What is put in is never split again: a value with blanks stays one word.
/// * There is no shell: pipes, redirections, `;`, `&`, substitutions, patterns, `~`, and assignments before the program
///   are refused, unless they are quoted. Who needs them writes a script and names it here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    words: Vec<Vec<Part>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(String),
}

/// Why a text is no command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidCommand {
    #[error("`{0}` is not supported, as no shell is used: quote it, or put the command into a script")]
    Shell(char),
    #[error("a {0} is not closed")]
    Unclosed(&'static str),
    #[error("a control character does not belong into a command")]
    Control,
    #[error("`${0}` is no variable: write $NAME or ${{NAME}}, or quote the $ with a backslash")]
    Variable(String),
    #[error("`{0}` before the program is not supported: make it a variable of the instance")]
    Assignment(String),
    #[error("it has no program")]
    Empty,
}

/// A variable that cannot be put into a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unexpanded {
    #[error("the command uses ${0}, which is not set: make it a variable of the instance")]
    Unset(String),
    #[error("the command uses $PORT, but the instance has no port: give it one")]
    NoPort,
    #[error("the command uses $DATA_DIR, but the instance has no data directory: give it one")]
    NoDataDirectory,
    #[error(
        "the command uses ${0}, which is a secret: everybody on the machine can see arguments; read it from the \
         environment instead"
    )]
    Secret(String),
}

impl Command {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidCommand> {
        let mut parser = Parser { rest: text.trim().chars().peekable(), words: Vec::new(), word: None };
        parser.parse()?;
        let words = parser.words;
        match words.first().map(Vec::as_slice) {
            None | Some([]) => return Err(InvalidCommand::Empty),
            Some([Part::Text(text), ..]) => {
                if let Some((name, _)) = text.split_once('=').filter(|(name, _)| is_name(name)) {
                    return Err(InvalidCommand::Assignment(format!("{name}=")));
                }
            }
            Some([Part::Variable(_), ..]) => {}
        }
        Ok(Self { words })
    }

    /// The words with every variable replaced by what `value` says.
    pub(crate) fn expand(
        &self,
        value: impl Fn(&str) -> Result<String, Unexpanded>,
    ) -> Result<Vec<String>, Unexpanded> {
        let expand = |part: &Part| match part {
            Part::Text(text) => Ok(text.clone()),
            Part::Variable(name) => value(name),
        };
        self.words.iter().map(|word| word.iter().map(expand).collect()).collect()
    }
}

struct Parser<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    words: Vec<Vec<Part>>,
    word: Option<Vec<Part>>,
}

impl Parser<'_> {
    fn parse(&mut self) -> Result<(), InvalidCommand> {
        while let Some(c) = self.rest.next() {
            match c {
                ' ' | '\t' => self.words.extend(self.word.take()),
                '\'' => self.single_quoted()?,
                '"' => self.double_quoted()?,
                '\\' => {
                    let escaped = self.rest.next().ok_or(InvalidCommand::Unclosed("backslash"))?;
                    self.push(escaped)?;
                }
                '$' => self.variable()?,
                '|' | '&' | ';' | '<' | '>' | '(' | ')' | '`' | '*' | '?' | '[' => {
                    return Err(InvalidCommand::Shell(c));
                }
                '~' | '#' if self.word.is_none() => return Err(InvalidCommand::Shell(c)),
                _ => self.push(c)?,
            }
        }
        self.words.extend(self.word.take());
        Ok(())
    }

    fn single_quoted(&mut self) -> Result<(), InvalidCommand> {
        self.word.get_or_insert_default();
        loop {
            match self.rest.next().ok_or(InvalidCommand::Unclosed("single quote"))? {
                '\'' => return Ok(()),
                c => self.push(c)?,
            }
        }
    }

    fn double_quoted(&mut self) -> Result<(), InvalidCommand> {
        const UNCLOSED: InvalidCommand = InvalidCommand::Unclosed("double quote");
        self.word.get_or_insert_default();
        loop {
            match self.rest.next().ok_or(UNCLOSED)? {
                '"' => return Ok(()),
                '$' => self.variable()?,
                '`' => return Err(InvalidCommand::Shell('`')),
                '\\' => {
                    let escaped = self.rest.next().ok_or(UNCLOSED)?;
                    if !matches!(escaped, '"' | '\\' | '$' | '`') {
                        self.push('\\')?;
                    }
                    self.push(escaped)?;
                }
                c => self.push(c)?,
            }
        }
    }

    fn variable(&mut self) -> Result<(), InvalidCommand> {
        let braced = self.rest.next_if_eq(&'{').is_some();
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        if !is_name(&name) || (braced && self.rest.next_if_eq(&'}').is_none()) {
            let next = self.rest.peek().map(char::to_string).unwrap_or_default();
            let brace = if braced { "{" } else { "" };
            return Err(InvalidCommand::Variable(format!("{brace}{name}{next}")));
        }
        self.word.get_or_insert_default().push(Part::Variable(name));
        Ok(())
    }

    fn push(&mut self, c: char) -> Result<(), InvalidCommand> {
        if c.is_control() && c != '\t' {
            return Err(InvalidCommand::Control);
        }
        let word = self.word.get_or_insert_default();
        if let Some(Part::Text(text)) = word.last_mut() {
            text.push(c);
        } else {
            word.push(Part::Text(c.to_string()));
        }
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> Result<String, Unexpanded> {
        match name {
            "PORT" => Ok("8069".into()),
            "DATA_DIR" => Ok("/srv/my data".into()),
            _ => Err(Unexpanded::Unset(name.into())),
        }
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(Command::parse(text).unwrap().expand(value).unwrap(), expected, "{text}");
    }

    #[test]
    fn words_quotes_and_variables() {
        check("server --port $PORT", &["server", "--port", "8069"]);
        check("  server\t-p${PORT}x  ", &["server", "-p8069x"]);
        check("server $DATA_DIR", &["server", "/srv/my data"]);
        check("server \"$DATA_DIR/a b\" 'c $PORT'", &["server", "/srv/my data/a b", "c $PORT"]);
        check(r#"a "\"\$\\\n" \$PORT b\ c"#, &["a", r#""$\\n"#, "$PORT", "b c"]);
        check("a '' \"\"", &["a", "", ""]);
        check("a '|' \"*;\" \\& x=1 a~b {a,b}", &["a", "|", "*;", "&", "x=1", "a~b", "{a,b}"]);
        check("./bin/käse 'ä'", &["./bin/käse", "ä"]);
    }

    #[track_caller]
    fn check_error(text: &str, expected: &InvalidCommand) {
        assert_eq!(Command::parse(text).as_ref().unwrap_err(), expected, "{text}");
    }

    #[test]
    fn what_needs_a_shell_is_refused() {
        for c in ['|', '&', ';', '<', '>', '(', ')', '`', '*', '?', '['] {
            check_error(&format!("a {c} b"), &InvalidCommand::Shell(c));
        }
        check_error("a ~/x", &InvalidCommand::Shell('~'));
        check_error("a # b", &InvalidCommand::Shell('#'));
        check_error("a \"`b`\"", &InvalidCommand::Shell('`'));
        check_error("a $(b)", &InvalidCommand::Variable("(".into()));
        check_error("a ${PORT:-1}", &InvalidCommand::Variable("{PORT:".into()));
        check_error("a $1", &InvalidCommand::Variable("1".into()));
        check_error("a $", &InvalidCommand::Variable(String::new()));
        check_error("A=1 b", &InvalidCommand::Assignment("A=".into()));
        check_error("a 'b", &InvalidCommand::Unclosed("single quote"));
        check_error("a \"b", &InvalidCommand::Unclosed("double quote"));
        check_error("a \\", &InvalidCommand::Unclosed("backslash"));
        check_error("a \u{0}", &InvalidCommand::Control);
        check_error("''", &InvalidCommand::Empty);
        check_error("  ", &InvalidCommand::Empty);
    }

    #[test]
    fn a_variable_without_a_value_is_named() {
        let error = Command::parse("a $NOPE").unwrap().expand(value).unwrap_err();
        assert!(error.to_string().contains("$NOPE, which is not set"), "{error}");
    }
}
