//! Why a command failed: a reason for programs and a line for people.

use std::fmt;

/// Defines [`Reason`] with its codes, so that no reason can lack one.
macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident = $code:literal,)*) => {
        /// The kind of a failure. The codes are part of the interface: docs/reference/command-line.md lists
        /// them, and a test compares the two.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[$meta])* $name,)* }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The `code` in the answers of `--json`.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

reasons! {
    /// An option, an argument or a member of a request has a value that is not allowed.
    InvalidArgument = "invalid_argument",
    /// A request to the management API has no valid admin token.
    Unauthenticated = "unauthenticated",
    /// A request to the management API cannot be read.
    RequestMalformed = "request_malformed",
    RequestTooLong = "request_too_long",
    /// A request to the management API was not received in time.
    RequestTimeout = "request_timeout",
    /// The management API has no such method at this path.
    MethodNotAllowed = "method_not_allowed",
    /// The record changed since it was read: its ETag is not that of `If-Match`.
    PreconditionFailed = "precondition_failed",
    /// Too many requests came with a credential, or too many invalid ones from an address.
    RateLimited = "rate_limited",
    /// The same `Idempotency-Key` came with another request.
    IdempotencyKeyReused = "idempotency_key_reused",
    NotFound = "not_found",
    /// The role of the caller does not allow it.
    Forbidden = "forbidden",
    AlreadyExists = "already_exists",
    /// The record exists, but its state does not allow the change.
    Conflict = "conflict",
    /// The change would exceed a limit of the policy or of an org.
    LimitExceeded = "limit_exceeded",
    /// Gateways would refuse the policy, or a record in it.
    PolicyRefused = "policy_refused",
    /// A URL leads out of the public Internet.
    PrivateAddress = "private_address",
    /// What an identity provider publishes does not fit. Nothing was saved.
    ProviderCheckFailed = "provider_check_failed",
    /// `policy check` found errors.
    CheckFailed = "check_failed",
    FileUnreadable = "file_unreadable",
    /// The content of a file has the wrong form.
    FileInvalid = "file_invalid",
    FileUnwritable = "file_unwritable",
    EcdsNotEnabled = "ecds_not_enabled",
    /// The file for Envoy could not be written after the change. Nothing was changed.
    EcdsRefused = "ecds_refused",
    /// The change is made, but the file for Envoy is still the old one.
    EcdsNotWritten = "ecds_not_written",
    DatabaseMissing = "database_missing",
    /// The file is not a database of this version of the program.
    DatabaseInvalid = "database_invalid",
    DatabaseBusy = "database_busy",
    DatabaseFailed = "database_failed",
    DiskFull = "disk_full",
    /// The signing keys are encrypted, and the master key is not there.
    KeyMissing = "key_missing",
    /// `serve` has no usable token for gateways.
    TokenInvalid = "token_invalid",
    ListenFailed = "listen_failed",
    /// The operating system refused something, such as random numbers or threads.
    SystemFailed = "system_failed",
}

/// A failure of a command. The line says what is wrong, why, and what to do next.
#[derive(Debug)]
pub struct Failure {
    pub reason: Reason,
    line: String,
    /// The wrong value, by the name that it has in the API. The command line has an option of this name.
    pub field: Option<&'static str>,
    /// The command that helps.
    hint: Option<String>,
    /// After how many seconds another attempt can succeed.
    pub retry_after: Option<u64>,
}

impl Failure {
    pub fn new(reason: Reason, line: impl Into<String>) -> Self {
        Self { reason, line: line.into(), field: None, hint: None, retry_after: None }
    }

    /// A value that is not allowed. `line` continues the name of the value: "must be ...".
    pub fn of(field: &'static str, line: impl Into<String>) -> Self {
        Self { field: Some(field), ..Self::new(Reason::InvalidArgument, line) }
    }

    /// The same failure for another reason.
    pub fn because(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// The same failure, with a command that helps. Only users of the command line see it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same failure, with the time until another attempt can succeed, in seconds.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The line without the name of its field.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The line as a sentence, for people who see no name of a field.
    pub fn sentence(&self) -> String {
        sentence(&self.detail())
    }

    /// The line that stands beside the wrong field of a form.
    pub fn line_of_field(&self) -> String {
        let line = self.line.trim_end_matches('.');
        let has_subject = !["must ", "has ", "is "].iter().any(|verb| line.starts_with(verb));
        match self.field {
            Some(_) if has_subject => sentence(line),
            Some(_) => format!("This {line}."),
            None => self.sentence(),
        }
    }

    /// The line for users of the API: without options and commands of the command line.
    pub fn detail(&self) -> String {
        match self.field {
            Some(field) => format!("{field} {}", self.line),
            None => self.line.clone(),
        }
    }

    /// A closure for `map_err` that puts `what` in front of the error.
    pub fn during<E: fmt::Display>(reason: Reason, what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::new(reason, format!("{what}: {error}"))
    }

    /// The same failure with `what` in front of its line.
    pub fn within(self, what: impl fmt::Display) -> Self {
        Self { line: format!("{what}: {}", self.detail()), field: None, ..self }
    }
}

/// A text with a capital letter at its beginning.
pub(crate) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A line with a capital letter at its beginning and a period at its end. A line that begins with a value, such as a URL or a name
/// of the API, keeps it as it is.
pub fn sentence(line: &str) -> String {
    let line = line.trim_end_matches('.');
    let is_word = line.split(' ').next().is_some_and(|word| word.chars().all(|letter| letter.is_alphabetic() || letter == ','));
    format!("{}.", if is_word { capitalized(line) } else { line.to_owned() })
}

/// The option of the command line for a value of the API.
fn option(field: &str) -> String {
    match field {
        "connectors" | "scopes" | "default_scopes" | "client_scopes" => {
            format!("--{}", field.trim_end_matches('s').replace('_', "-"))
        }
        "expires_at" => "--expires".to_owned(),
        _ => format!("--{}", field.replace('_', "-")),
    }
}

/// A character as it is, or the escape sequence of a control character, which a terminal would obey.
pub fn visible(letter: char) -> impl Iterator<Item = char> {
    let (itself, escaped) = if letter.is_control() { (None, Some(letter.escape_default())) } else { (Some(letter), None) };
    itself.into_iter().chain(escaped.into_iter().flatten())
}

impl fmt::Display for Failure {
    /// One line, even if the failure quotes an error of several lines.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = self.field {
            write!(formatter, "{} ", option(field))?;
        }
        let line: String = self.line.lines().map(|line| line.chars().flat_map(visible).collect::<String>() + "\n").collect();
        let mut parts = line.lines().map(str::trim).filter(|part| !part.is_empty());
        formatter.write_str(parts.next().unwrap_or("failed"))?;
        parts.try_for_each(|part| write!(formatter, "; {part}"))?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(formatter, ". {hint}"))
    }
}

impl std::error::Error for Failure {}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        let said = error.as_db_error().map(ToString::to_string);
        if error.is_closed() {
            return Self::new(Reason::DatabaseFailed, "the connection to the database was lost: try again");
        }
        if error.code() == Some(&postgres::error::SqlState::LOCK_NOT_AVAILABLE) {
            return Self::new(Reason::DatabaseBusy, "the database is busy with another change: try again");
        }
        Self::new(Reason::DatabaseFailed, format!("the database failed: {}", said.unwrap_or_else(|| error.to_string())))
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => {
                Self::new(Reason::DatabaseBusy, "the database is busy with another change: try again")
            }
            Some(rusqlite::ErrorCode::NotADatabase) => Self::new(
                Reason::DatabaseInvalid,
                "the file is not a database of apexmcp, or it is damaged: name another file with --db, or restore a copy",
            ),
            Some(rusqlite::ErrorCode::DiskFull) => Self::new(Reason::DiskFull, "the disk is full: nothing was changed"),
            _ => Self::new(Reason::DatabaseFailed, format!("the database failed: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_field_is_a_sentence() {
        for (line, expected) in [
            ("must be an address", "This must be an address."),
            ("has two values.", "This has two values."),
            ("is missing", "This is missing."),
            ("\"x\": expected a number", "\"x\": expected a number."),
            ("isolated", "Isolated."),
            ("expected a number", "Expected a number."),
        ] {
            assert_eq!(Failure::of("field", line).line_of_field(), expected);
        }
        assert_eq!(Failure::new(Reason::Conflict, "it signs").line_of_field(), "It signs.");
    }
}
