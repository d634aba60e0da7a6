//! One source file as the checks see it: code without comments and text, comments apart, paths it names.
//!
//! This is a lexer and a reader of `use` trees, not a compiler. It knows enough of the language to be fooled
//! only on purpose: nested comments, raw strings, lifetimes against characters, nested `use` groups,
//! `self`/`super`, and items under `#[cfg(test)]`, which are cut out.

/// A source file after reading.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Words and punctuation of the code, test items left out, in order, with their line.
    pub(crate) tokens: Vec<Token>,
    /// Words and punctuation of the whole code, test items included.
    pub(crate) all_tokens: Vec<Token>,
    /// The text of all comments.
    pub(crate) comments: String,
}

/// One word or one punctuation character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The word or the character.
    pub(crate) text: String,
    /// Line, from 1.
    pub(crate) line: usize,
}

/// A path that the code names, as segments, with its line. `crate` stands at the front for our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Segments, such as `["crate", "engine", "apply"]`.
    pub(crate) segments: Vec<String>,
    /// Line, from 1.
    pub(crate) line: usize,
}

impl Source {
    /// Reads a file.
    pub(crate) fn read(text: &str) -> Source {
        let (code, comments) = strip(text);
        let all_tokens = tokenize(&code);
        Source { tokens: without_tests(&all_tokens), all_tokens, comments }
    }

    /// Modules in files of their own that are compiled for tests only: `#[cfg(test)] mod scripts;`.
    pub(crate) fn test_modules(&self) -> Vec<&str> {
        let word = |at: usize| self.all_tokens.get(at).map_or("", |token| token.text.as_str());
        (0..self.all_tokens.len())
            .filter(|at| is_test_mark(&self.all_tokens[*at..]))
            .map(|at| at + TEST_MARK.len())
            .filter(|at| word(*at) == "mod" && word(at + 2) == ";")
            .map(|at| word(at + 1))
            .collect()
    }

    /// Every path of two or more segments, and everything in a `use`, relative paths resolved.
    ///
    /// `module` is the place of the file, such as `["engine", "decide"]` for `src/engine/decide.rs`.
    pub(crate) fn names(&self, module: &[&str]) -> Vec<Named> {
        let mut reader = Reader { tokens: &self.tokens, at: 0, found: Vec::new() };
        reader.read();
        let resolve = |named: Named| Named { segments: resolve(named.segments, module), ..named };
        reader.found.into_iter().map(resolve).collect()
    }
}

/// Splits a text into code (comments and contents of strings blanked, lines kept) and comments.
fn strip(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let mut at = 0;
    let starts = |at: usize, with: &str| {
        with.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c))
    };
    while at < chars.len() {
        let word_before = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                comments.push(chars[at]);
                at += 1;
            }
            comments.push('\n');
        } else if starts(at, "/*") {
            let mut depth = 0;
            while at < chars.len() {
                if starts(at, "/*") {
                    depth += 1;
                    at += 2;
                } else if starts(at, "*/") {
                    depth -= 1;
                    at += 2;
                } else {
                    comments.push(chars[at]);
                    code.extend((chars[at] == '\n').then_some('\n'));
                    at += 1;
                }
                if depth == 0 {
                    break;
                }
            }
            code.push(' ');
            comments.push('\n');
        } else if let Some(end) = (!word_before).then(|| raw_string_end(&chars, at)).flatten() {
            code.push_str("\"\"");
            code.extend(chars[at..end].iter().filter(|c| **c == '\n'));
            at = end;
        } else if chars[at] == '"' {
            code.push_str("\"\"");
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                let escaped = usize::from(chars[at] == '\\');
                code.extend(
                    chars[at..chars.len().min(at + 1 + escaped)].iter().filter(|c| **c == '\n'),
                );
                at += 1 + escaped;
            }
            at += 1;
        } else if chars[at] == '\'' && starts(at + 1, "\\") {
            at += 3;
            while at < chars.len() && chars[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else if chars[at] == '\'' && chars.get(at + 2) == Some(&'\'') {
            at += 3;
        } else if chars[at] == '\'' {
            // A lifetime or a label: its name is no word of the code.
            at += 1;
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
        } else {
            code.push(chars[at]);
            at += 1;
        }
    }
    (code, comments)
}

/// The place after a raw string (`r"…"`, `br#"…"#`) that starts at `at`, if one does.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let mut at = at;
    if matches!(chars.get(at), Some('b' | 'c')) {
        at += 1;
    }
    if chars.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    at += hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    at += 1;
    while at < chars.len() {
        let closing = chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
        if chars[at] == '"' && closing {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(at)
}

fn tokenize(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (i, line) in code.lines().enumerate() {
        let mut word = String::new();
        for c in line.chars().chain([' ']) {
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
                continue;
            }
            if !word.is_empty() {
                tokens.push(Token { text: std::mem::take(&mut word), line: i + 1 });
            }
            if !c.is_whitespace() {
                tokens.push(Token { text: c.to_string(), line: i + 1 });
            }
        }
    }
    tokens
}

/// What stands in front of an item that only tests have.
const TEST_MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];

fn is_test_mark(tokens: &[Token]) -> bool {
    tokens.len() >= TEST_MARK.len()
        && TEST_MARK.iter().zip(tokens).all(|(mark, token)| token.text == *mark)
}

/// The tokens without items under `#[cfg(test)]`.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_test_mark(&tokens[at..]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        // The item ends with its outermost closing brace, or with a semicolon before any brace.
        let mut depth = 0;
        at += TEST_MARK.len();
        while at < tokens.len() {
            let text = tokens[at].text.as_str();
            at += 1;
            match text {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(text, "}" | ";") {
                break;
            }
        }
    }
    kept
}

/// Walks over tokens and collects paths.
struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    found: Vec<Named>,
}

impl Reader<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| token.text.as_str())
    }

    fn is_word(&self) -> bool {
        self.text(0).starts_with(|c: char| c.is_alphabetic() || c == '_')
    }

    fn colons(&self) -> bool {
        self.text(0) == ":" && self.text(1) == ":"
    }

    fn read(&mut self) {
        while self.at < self.tokens.len() {
            let line = self.tokens[self.at].line;
            match self.text(0) {
                "use" => {
                    self.at += 1;
                    self.tree(&[]);
                }
                // `extern crate name;` names a crate as `use name;` does.
                "extern" if self.text(1) == "crate" => {
                    self.at += 2;
                    self.tree(&[]);
                }
                _ if self.is_word() => {
                    let segments = self.path();
                    if segments.len() > 1 {
                        self.found.push(Named { segments, line });
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// A plain path: words joined by `::`.
    fn path(&mut self) -> Vec<String> {
        let mut segments = vec![self.text(0).to_owned()];
        self.at += 1;
        while self.colons() {
            self.at += 2;
            if !self.is_word() {
                break;
            }
            segments.push(self.text(0).to_owned());
            self.at += 1;
        }
        segments
    }

    /// A `use` tree below a prefix; stops before what it does not understand.
    fn tree(&mut self, prefix: &[String]) {
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        let mut segments = prefix.to_vec();
        if self.colons() {
            self.at += 2;
        }
        loop {
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while self.at < self.tokens.len() && self.text(0) != "}" {
                        let before = self.at;
                        self.tree(&segments);
                        self.at += usize::from(self.text(0) == "," || self.at == before);
                    }
                    self.at += 1;
                    return;
                }
                "*" => {
                    segments.push("*".to_owned());
                    self.at += 1;
                }
                "self" if !segments.is_empty() => self.at += 1,
                _ if self.is_word() => {
                    segments.push(self.text(0).to_owned());
                    self.at += 1;
                }
                _ => return,
            }
            if self.colons() {
                self.at += 2;
                continue;
            }
            if self.text(0) == "as" {
                self.at += 2;
            }
            self.found.push(Named { segments, line });
            return;
        }
    }
}

/// Turns `self::…` and `super::…` into `crate::…`, as seen from a module.
fn resolve(segments: Vec<String>, module: &[&str]) -> Vec<String> {
    let mut place: Vec<&str> = module.to_vec();
    let mut rest = segments.iter().map(String::as_str).peekable();
    match rest.peek() {
        Some(&"self") => {
            rest.next();
        }
        Some(&"super") => {
            while rest.next_if(|segment| *segment == "super").is_some() {
                place.pop();
            }
        }
        _ => return segments,
    }
    std::iter::once("crate").chain(place).chain(rest).map(str::to_owned).collect()
}
