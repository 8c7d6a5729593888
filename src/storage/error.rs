//! Why a statement did not do what it should.

use std::fmt;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the database or of the way to it.
#[derive(Debug)]
pub enum Error {
    /// The connection was lost or could not be had; the outcome of a commit is not known.
    Lost(String),
    /// PostgreSQL refused a statement; the transaction has no effect.
    Refused { statement: &'static str, cause: tokio_postgres::Error },
    /// What the configuration says of the database is wrong: a sentence for the admin.
    Settings(String),
    /// A row did not have the shape that the code expects.
    Corrupt(String),
}

impl Error {
    /// SQLSTATE of a refused statement.
    pub fn state(&self) -> Option<&SqlState> {
        match self {
            Self::Refused { cause, .. } => cause.code(),
            _ => None,
        }
    }

    /// Whether a unique constraint was violated.
    pub fn is_unique_violation(&self) -> bool {
        self.state() == Some(&SqlState::UNIQUE_VIOLATION)
    }

    /// Whether `chatd_fence` found that this instance no longer owns a shard (R6).
    pub fn is_fenced(&self) -> bool {
        self.is("CH001")
    }

    /// Whether `chatd_use_registration_token` found no use left.
    pub fn is_token_used_up(&self) -> bool {
        self.is("CH002")
    }

    /// Whether a commit does not follow the one that its process has seen last.
    pub fn is_out_of_step(&self) -> bool {
        self.is("CH003")
    }

    /// Whether another process has taken over the instance that this one was (R6).
    pub fn is_unseated(&self) -> bool {
        self.is("CH004")
    }

    /// Whether a text was refused that PostgreSQL cannot keep: one with NUL in it, or one that is
    /// too long for an index. Clients are told so; of what other servers tell, `event_form` lets
    /// none through.
    pub fn is_unstorable_text(&self) -> bool {
        let states = [
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            SqlState::UNTRANSLATABLE_CHARACTER,
            SqlState::PROGRAM_LIMIT_EXCEEDED,
        ];
        self.state().is_some_and(|state| states.contains(state))
    }

    /// Whether the same transaction may well succeed if it is sent again.
    pub fn is_transient(&self) -> bool {
        let transient = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
        self.state().is_some_and(|state| transient.contains(state))
    }

    fn is(&self, code: &str) -> bool {
        self.state().is_some_and(|state| state.code() == code)
    }

    /// Why there is no connection.
    pub(crate) fn from_pool(error: &PoolError) -> Self {
        let refusal = match error {
            PoolError::Backend(cause) => cause.as_db_error(),
            _ => None,
        };
        match refusal.filter(|refusal| is_lasting(refusal.code())) {
            Some(refusal) => {
                Self::Settings(format!("PostgreSQL refuses chatd: {}", refusal.message()))
            }
            None => Self::Lost(with_causes(error)),
        }
    }

    pub(crate) fn from_postgres(statement: &'static str, cause: tokio_postgres::Error) -> Self {
        let lost = cause.is_closed()
            || cause.code().is_none()
            || cause.code().is_some_and(|state| {
                // Class 57P: shutdown and crash of the server, and sessions that it ends. 25P03
                // and 25P04 are such, too: the transaction was given up.
                let code = state.code();
                ["08", "57P"].iter().any(|class| code.starts_with(class))
                    || ["25P03", "25P04"].contains(&code)
            });
        if lost && !is_client_side(&cause) {
            Self::Lost(format!("{statement}: {}", describe(&cause)))
        } else {
            Self::Refused { statement, cause }
        }
    }
}

/// An error of the pool with its causes.
fn with_causes(error: &PoolError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Wrong password or user, no such database: asking again does not help.
fn is_lasting(state: &SqlState) -> bool {
    state.code().starts_with("28") || *state == SqlState::INVALID_CATALOG_NAME
}

/// Wrong parameter types and the like: found before anything was sent.
fn is_client_side(cause: &tokio_postgres::Error) -> bool {
    let text = cause.to_string();
    cause.code().is_none()
        && (text.contains("serializing parameter") || text.contains("deserializing column"))
}

fn describe(cause: &tokio_postgres::Error) -> String {
    match cause.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => cause.to_string(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => write!(f, "the database cannot be reached: {what}"),
            Self::Refused { statement, cause } => {
                write!(f, "the database refused {statement}: {}", describe(cause))
            }
            Self::Settings(what) => f.write_str(what),
            Self::Corrupt(what) => write!(f, "unexpected data in the database: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for chatd_base::Error {
    /// What passes by itself is a 503, which clients repeat.
    fn from(error: Error) -> Self {
        if error.is_unstorable_text() {
            let message = "a text is too long or has a NUL character in it";
            return chatd_base::Refusal::invalid_param(message).into();
        }
        let away = match &error {
            Error::Lost(_) | Error::Settings(_) => true,
            // Class 53: the disk is full, there are too many connections.
            Error::Refused { cause, .. } => {
                let exhausted = cause.code().is_some_and(|state| state.code().starts_with("53"));
                if exhausted {
                    tracing::error!(%error, "the database has run out of something");
                }
                exhausted || error.is_transient() || error.is_unseated()
            }
            Error::Corrupt(_) => false,
        };
        if !away {
            return Self::internal(error);
        }
        let message = "the database is unavailable; try again";
        chatd_base::Refusal::new(503, "M_UNKNOWN", message).into()
    }
}
