//! SQL `text` as bytes.
//!
//! pgrx's `String` and `&str` panic on bytes that are not UTF-8, which any database whose encoding
//! is not UTF8 (template1 with SQL_ASCII, say) can hold. [`Text`] takes what comes and lets the
//! caller refuse it with an error that names the argument.

use std::borrow::Cow;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::callconv::{Arg, ArgAbi};
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, IntoDatum, pg_sys};

/// A value of type `text`: any bytes but NUL.
pub(crate) struct Text(Vec<u8>);

impl Text {
    /// The bytes as they are.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The value as a string; `what` names it in the error.
    pub(crate) fn into_string(self, what: &str) -> Result<String> {
        String::from_utf8(self.0).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::new(Kind::InvalidArgument, format!("{what} is not valid UTF-8"))
                .detail(format!(
                    "Byte {} is 0x{:02x}.",
                    at + 1,
                    error.as_bytes().get(at).copied().unwrap_or_default()
                ))
                .hint("Use ASCII or UTF-8, whatever the encoding of the database.")
        })
    }
}

impl FromDatum for Text {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null || datum.is_null() {
            return None;
        }
        // SAFETY: the caller vouches for a datum of type text, a varlena. A detoasted copy lives in the
        // call's memory context and is freed with it; the bytes are copied out here.
        unsafe {
            let varlena = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            Some(Self(pgrx::varlena::varlena_to_byte_slice(varlena).to_vec()))
        }
    }
}

impl IntoDatum for Text {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        // text and bytea share their representation: a varlena of the bytes.
        self.0.into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

// SAFETY: only ever given a text argument, by the SQL this very impl makes pgrx generate.
unsafe impl<'fcx> ArgAbi<'fcx> for Text {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the caller vouches for a non-null argument of this type.
        unsafe { arg.unbox_arg_using_from_datum().expect("the caller checked that the argument is not null") }
    }

    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: the caller vouches for an argument of this type.
        unsafe { arg.unbox_arg_using_from_datum().into() }
    }
}

// SAFETY: the mapping names the type whose representation FromDatum and IntoDatum above implement.
unsafe impl SqlTranslatable for Text {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Text);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: std::result::Result<SqlMappingRef, ArgumentError> =
        Ok(SqlMappingRef::literal("text"));
    const RETURN_SQL: std::result::Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("text")));
}

/// Text on its way into the server: no NUL byte (C strings end there), and in a database whose
/// encoding is neither UTF8 nor SQL_ASCII nothing but ASCII, since our bytes would not be valid there.
pub(crate) fn server_text(text: &str) -> String {
    let plain: Cow<'_, str> = if takes_utf8() || text.is_ascii() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect())
    };
    plain.replace('\0', "?")
}

/// [`server_text`] that the client's encoding has, too: where that is another than UTF-8, characters outside ASCII
/// are written as escapes. Converting them might raise an ERROR, and ASCII is the same in every encoding.
pub(super) fn client_text(text: &str) -> String {
    let text = server_text(text);
    // SAFETY: reads a setting of the session.
    if text.is_ascii() || holds_utf8(unsafe { pg_sys::pg_get_client_encoding() }) {
        return text;
    }
    let escape = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
    text.chars().map(escape).collect()
}

fn takes_utf8() -> bool {
    // SAFETY: reads a setting of the session's database.
    holds_utf8(unsafe { pg_sys::GetDatabaseEncoding() })
}

fn holds_utf8(encoding: i32) -> bool {
    encoding == pg_sys::pg_enc::PG_UTF8 as i32 || encoding == pg_sys::pg_enc::PG_SQL_ASCII as i32
}
